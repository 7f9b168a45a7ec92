"""How a command ends: its status, and at most one line on standard error."""

import errno
import io
import subprocess
import sys

import pytest

from pgprune import PruningError
from pgprune.utils.command_line import ArgumentParser, run_command
from pgprune.utils.command_names import program


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


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("--help > /dev/full", 2, "error: standard output: no space left on its device;"),
        ("--help | (exec <&-; sleep 1); exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_an_output_that_takes_nothing(words, status, said):
    script = f"{sys.executable} -m pgprune.commands {words}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.startswith(said)) == (status, True)
    assert len(done.stderr.splitlines()) == bool(said)


def test_a_current_directory_that_is_gone(tmp_path, monkeypatch, capsys):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert program("pgprune") == "pgprune"
    assert status_of(lambda: None) == 2
    assert "the current directory is gone" in capsys.readouterr().err


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
