"""Imports go down only: the floors of the house as data, held against the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("utils", "inspection", "hub_code"),
    ("data", "losses", "models"),
    ("masking",),
    ("repair", "budget"),
    ("metrics", "surgery"),
    ("methods.common",),
    ("methods", "runs"),
    ("analysis", "export", "evaluation", "finetuning"),
    ("envs",),
    ("agents.levels",),
    ("agents",),
    ("agents.training",),
    ("experiments", "making"),
    ("commands",),
)
"""Packages of pgprune from the ground up; a package imports only what is on floors below it."""

FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
PLACES = {"envs": "envs", "agents": "agents", "experiments": "experiments", "commands": "scripts"}
MOST_MODULES = 18
MOST_LINES = 300
LONGEST_CHAIN = 9


def folder(package: str) -> Path:
    """Where the source of a package is."""
    top, _, rest = package.partition(".")
    return ROOT / PLACES.get(top, f"pgprune/{top}") / rest


def package_of(module: str) -> str:
    """The package of a module such as ``pgprune.agents.training.train``."""
    parts = module.split(".")[1:]
    two = ".".join(parts[:2])
    return two if two in FLOOR else parts[0]


def modules(package: str) -> list[Path]:
    """The files of a package, ``__init__`` included."""
    return sorted(folder(package).glob("*.py"))


def imported(file: Path) -> set[str]:
    """The packages of ours that a file imports anywhere in it."""
    found = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    ours = {name for name in found if name.startswith("pgprune.")}
    return {package for name in ours if (package := package_of(name)) in FLOOR}


def graph() -> dict[str, set[str]]:
    """What each package of the library imports of the others; ``errors`` is no package."""
    packages = [package for package in FLOOR if package not in ("errors", "commands")]
    return {
        package: set().union(*map(imported, modules(package))) - {package, "errors"}
        for package in packages
    }


@pytest.mark.parametrize("package", [package for package in FLOOR if package != "errors"])
def test_imports_go_down_only(package):
    for file in modules(package):
        for other in imported(file) - {package}:
            assert FLOOR[other] < FLOOR[package], f"{file} imports {other}"


def test_every_folder_is_on_a_floor():
    below = {path.parent.name for path in (ROOT / "pgprune").glob("*/__init__.py")}
    above = set(PLACES) | {"agents.levels", "agents.training"}
    assert below | above | {"methods.common", "errors"} == set(FLOOR)


@pytest.mark.parametrize("package", [package for package in FLOOR if package != "errors"])
def test_a_package_is_small_enough_to_be_seen_at_once(package):
    assert 1 < len(modules(package)) <= MOST_MODULES


def test_no_file_is_too_long():
    long = {
        str(file): lines
        for file in ROOT.rglob("*.py")
        if not {".venv", "build", "runs"} & set(file.relative_to(ROOT).parts)
        and (lines := len(file.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_the_longest_chain_of_packages():
    imports = graph()

    def chain(package: str) -> list[str]:
        return [package, *max(map(chain, imports[package]), key=len, default=[])]

    longest = max(map(chain, imports), key=len)
    assert len(longest) <= LONGEST_CHAIN, " -> ".join(longest)
