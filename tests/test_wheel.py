"""A wheel built from the tree has all that pgprune needs, and works where there is no checkout."""

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from helpers.environment import Environment
from pgprune.utils.command_names import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
QUICK = ("--init-samples=8", "--evaluation-windows=8", "--total-timesteps=4", "--quiet")
RUN_COMMANDS = """
import json, sys
from pgprune.commands.__main__ import main
for words in json.loads(sys.argv[1]):  # in one process: importing torch takes seconds
    sys.argv = ["pgprune", *words]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, words
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git knows of the tree, so that no leftover of a build comes along."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (source := ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (copy := folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    done = subprocess.run(
        [sys.executable, "-c", build], cwd=folder / "tree", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("pgprune-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A new environment with the wheel and the packages that it needs."""
    environment = Environment(tmp_path_factory.mktemp("installed"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(environment.packages)
    return environment


def sources() -> dict[str, Path]:
    """Every file that belongs into the wheel, by its path in there."""
    found = {}
    for package in SETUPTOOLS["packages"]:
        folder = ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
        if package.startswith("pgprune.agents."):
            folder = ROOT / package.removeprefix("pgprune.").replace(".", "/")
        files = [*folder.glob("*.py")]
        for pattern in SETUPTOOLS["package-data"].get(package, []):
            files += [file for file in folder.glob(pattern) if file.is_file()]
        found |= {f"{package.replace('.', '/')}/{f.relative_to(folder)}": f for f in files}
    return found


def test_every_module_and_data_file_is_inside(wheel):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert inside == set(sources())
        assert "pgprune/builtin_model/model.safetensors" in inside
        assert any(name.endswith(".yaml") for name in inside)
        (points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "pgprune = pgprune.commands.__main__:main" in archive.read(points).decode()


def test_every_package_of_the_tree_is_declared():
    folders = {file.parent for file in (ROOT / "pgprune").rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert names <= set(SETUPTOOLS["packages"])


def test_the_commands_work_outside_the_checkout(environment):
    shown = environment.run("-m", "pgprune.commands", "--help")
    assert shown.returncode == 0 and all(f"  {name} " in shown.stdout for name in COMMANDS)
    train = ["train", "--output=run", "--export=hf", *QUICK]
    prune = ["prune", "--method=magnitude", "--output=one-shot", "--evaluation-windows=8"]
    done = environment.run("-c", RUN_COMMANDS, json.dumps([train, prune]))
    assert done.returncode == 0, done.stderr
    results = json.loads((environment.folder / "run" / "results.json").read_text())
    assert results["model"] == "builtin" and results["completed"]
    assert (environment.folder / "run" / "command.txt").read_text().startswith("pgprune train ")
    assert (environment.folder / "run" / "hf" / "model.safetensors").exists()
    assert "pgprune export one-shot" in done.stdout


def test_the_package_is_that_of_the_wheel(environment):
    place = environment.run("-c", "import pgprune; print(pgprune.__file__)").stdout.strip()
    assert Path(place).is_relative_to(environment.packages)
