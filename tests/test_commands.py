"""The commands: installed or as scripts, light until one is chosen, and help that fits the page."""

import ast
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from helpers.forked import Forked
from pgprune.utils.command_line import HELP_WIDTH, MAIN, ArgumentParser
from pgprune.utils.command_names import COMMANDS, command_words, program, spelled

ROOT = Path(__file__).resolve().parents[1]
LIGHT = "import sys; from pgprune.commands.__main__ import main; sys.argv[1:] = {words}\n"
LIGHT += "try: main()\nfinally: assert not {{'torch', 'transformers'}} & set(sys.modules)"


def parser(command: str) -> ArgumentParser:
    return import_module(f"pgprune.commands.{COMMANDS[command]}").make_parser()


def pgprune(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgprune.commands", *words]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_fits_one_line(command):
    texts = {
        action.dest: (action.help or "").splitlines()[0].partition(" (default: ")[0]
        for action in parser(command)._actions
        if action.help != "==SUPPRESS=="
    }
    assert not {name: len(text) for name, text in texts.items() if not 0 < len(text) <= HELP_WIDTH}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_installed_command_and_fits_100_columns(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"pgprune {command}"])
    monkeypatch.setenv("COLUMNS", "100")
    text = parser(command).format_help()
    assert text.startswith(f"usage: pgprune {command} ") and f"    pgprune {command} " in text
    assert "scripts/" not in text and max(map(len, text.splitlines())) <= 100


def test_train_shows_the_main_options_first_and_in_order(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pgprune train"])
    main = parser("train").format_help().partition("Main options:")[2].split("\n\n")[0]
    shown = [line.split()[0] for line in main.splitlines() if line.startswith("  --")]
    assert shown == [f"--{name.replace('_', '-')}" for name in MAIN if name != "method"]


@pytest.mark.parametrize("words", [["--help"], ["frobnicate"]])
def test_nothing_heavy_is_imported_before_a_command_is_chosen(words):
    done = subprocess.run([sys.executable, "-c", LIGHT.format(words=words)], capture_output=True)
    assert b"AssertionError" not in done.stderr
    assert done.returncode == (2 if words == ["frobnicate"] else 0)


def test_an_unknown_command_names_those_that_exist():
    done = pgprune("frobnicate")
    assert done.returncode == 2 and "'frobnicate'" in done.stderr
    assert all(command in done.stderr for command in COMMANDS)


def test_a_script_runs_the_same_command():
    command = [sys.executable, str(ROOT / "scripts" / "export.py"), "--help"]
    process = Forked(command, caught=True)
    out, err = process.communicate()
    assert process.returncode == 0 and out.startswith(f"usage: python {command[1]} RUN"), err


def test_messages_name_a_command_as_this_one_was_started(monkeypatch):
    text = "pgprune export RUN, then pgprune bench-inference RUN; not pgprune exporter"
    monkeypatch.setattr(sys, "argv", ["pgprune train", "--seed", "1"])
    assert spelled(text) == text
    assert command_words() == ["pgprune", "train", "--seed", "1"]
    monkeypatch.setattr(sys, "argv", [".venv/bin/pgprune train"])
    assert spelled("type pgprune export RUN") == "type .venv/bin/pgprune export RUN"
    monkeypatch.setattr(sys, "argv", ["scripts/train_agent.py", "--seed", "1"])
    python = program(sys.executable)
    assert spelled(text) == (
        f"{python} scripts/export.py RUN, then {python} scripts/benchmark_inference.py RUN; "
        "not pgprune exporter"
    )
    assert command_words() == ["python", "scripts/train_agent.py", "--seed", "1"]


def test_a_program_that_the_shell_does_not_find_is_named_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pgprune").write_text("")
    (tmp_path / "bin" / "pgprune").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert program("bin/pgprune") == "bin/pgprune"
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert program("bin/pgprune") == "pgprune"


@pytest.mark.parametrize("script", sorted(set(COMMANDS.values())))
def test_a_script_ends_at_once_on_ctrl_c_while_it_imports(script):
    """Its first import lets the system end it; run_command takes Ctrl-C back."""
    first = next(
        node
        for node in ast.parse((ROOT / "scripts" / f"{script}.py").read_text()).body
        if not isinstance(node, ast.Expr)
    )
    expected = "if __name__ == '__main__':\n    import startup\n    startup.begin()"
    assert ast.unparse(first) == expected


def test_ctrl_c_while_packages_are_imported_is_no_traceback():
    code = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from pgprune.commands.startup import begin; begin()\n"
    code += "os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


@pytest.mark.parametrize("words", [["bin/pgprune"], ["-m", "pgprune.commands"]])
def test_ctrl_c_while_the_installed_command_imports_its_first_package(words, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pgprune").write_text("from pgprune.commands.__main__ import main; main()")
    stand_in = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "gymnasium.py").write_text(stand_in)
    done = subprocess.run(
        [sys.executable, *words, "train"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_help_is_the_same_without_the_packages_that_take_seconds(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code = "import sys; from pgprune.commands.startup import begin\nsys.argv = ['-c', '--help']\n"
    code += "begin()\nfrom importlib import import_module\n"
    code += f"for name in {list(COMMANDS.values())}:\n"
    code += "    print(import_module(f'pgprune.commands.{name}').make_parser().format_help())\n"
    code += "assert not hasattr(sys.modules['torch'], '__version__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    monkeypatch.setattr(sys, "argv", ["-c"])
    assert done.stdout == "".join(f"{parser(command).format_help()}\n" for command in COMMANDS)


@pytest.mark.parametrize("words", [["train", "--help"], ["export", "-h"]])
def test_help_imports_nothing_heavy(words):
    done = pgprune(*words)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stdout.startswith(f"usage: pgprune {words[0]} ")
