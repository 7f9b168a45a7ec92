"""The package as installed: names, registration, weight of the import, and what it declares."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path

import gymnasium
import pytest

import pgprune

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_version():
    assert version("pgprune") == pgprune.__version__


@pytest.mark.parametrize(
    ("name", "floor"), [("pgprune.envs", "envs"), ("pgprune.agents", "agents")]
)
def test_the_floors_are_installed_below_pgprune(name, floor):
    assert Path(find_spec(name).origin).parent.name in (floor, name.rpartition(".")[2])


def test_importing_registers_the_environment_and_nothing_heavy():
    code = "import sys, pgprune; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    spec = gymnasium.spec("pgprune/LLMPruning-v0")
    assert spec.entry_point == "pgprune.envs:LLMPruningEnv"
    assert spec.vector_entry_point == "pgprune.envs:LLMPruningVectorEnv"


def test_it_is_typed():
    assert (Path(pgprune.__file__).parent / "py.typed").exists()


def test_every_constraint_is_a_pinned_version_and_covers_what_make_installs():
    lines = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] != "#"
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9.]*", line) for line in lines)
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines}
    extras = PROJECT["optional-dependencies"]
    asked = PROJECT["dependencies"] + extras["plots"] + extras["dev"]
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in asked}
    assert names - pinned == set()


def test_what_is_installed_declares_what_the_file_says():
    declared = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in requires("pgprune")}
    assert {"torch", "transformers", "gymnasium", "lm-eval", "gguf", "cma"} <= declared
