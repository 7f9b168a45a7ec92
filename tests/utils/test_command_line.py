"""How a command ends: its status, and at most one line on standard error."""

import errno
import io
import sys

import pytest

from pgprune import PruningError
from pgprune.utils.command_line import ArgumentParser, run_command


def status_of(main) -> int:
    with pytest.raises(SystemExit) as caught:
        run_command(main)
    return caught.value.code


def raises(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_an_error_cannot_steer_the_terminal(capsys):
    assert status_of(raises(PruningError("the column \x1b]0;title\x07 is\nnone"))) == 2
    assert capsys.readouterr().err == "error: the column \ufffd]0;title\ufffd is none\n"


def test_what_is_too_long_for_a_line_is_cut(capsys):
    assert status_of(raises(PruningError(f"the rate {'9' * 5000} is too large; give less"))) == 2
    said = capsys.readouterr().err
    assert "the rate 999" in said and "9... is too large; give less" in said and len(said) < 500


def test_what_the_system_refuses_is_one_line(capsys):
    assert status_of(raises(OSError(errno.EACCES, "Permission denied", "runs/a"))) == 2
    said = capsys.readouterr().err
    assert said == "error: runs/a: Permission denied; check the path and its permissions\n"


def test_ctrl_c_is_one_line(capsys):
    assert status_of(raises(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_standard_output_takes_every_character(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    assert status_of(lambda: print("\u2603 \udce9", flush=True)) is None
    assert written.getvalue() in (b"? ?\n", "\u2603 ?\n".encode())


@pytest.mark.parametrize("words", [["--output=~/a=b"], ["--output", "~/a=b"]])
def test_a_home_that_the_shell_has_left_as_it_is(words, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = ArgumentParser(None)
    parser.add_argument("--output")
    assert parser.parse_args(words).output == "/home/me/a=b"
    with pytest.raises(PruningError, match="'~nobody-here/a' begins with a home that is unknown"):
        parser.parse_args(["--output", "~nobody-here/a"])
