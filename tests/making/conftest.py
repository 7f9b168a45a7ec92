"""A model that was made smaller once, the whole way, for the tests of what is there then."""

from pathlib import Path
from typing import Any

import pytest

from helpers.command import as_options, command
from helpers.tiny import tiny_arguments


@pytest.fixture(scope="session")
def likely_arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model and a text that it finds likely."""
    return tiny_arguments(tmp_path_factory.mktemp("likely"), likely=True)


@pytest.fixture(scope="session")
def quick(likely_arguments: dict[str, Any]) -> list[str]:
    """The words of the command for a tiny model, so few that it takes a second or two."""
    names = ("calibration", "evaluation", "batch_size", "sequence_length")
    few = {name: likely_arguments[name] for name in names}
    few |= {"evaluation_windows": 8, "total_timesteps": 2, "prune_rate": 0.3}
    return [likely_arguments["model"], *as_options(few)]


@pytest.fixture(scope="session")
def made(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory after all stages."""
    output = tmp_path_factory.mktemp("made") / "whole way"
    assert command("make", *quick, "--recovery-minutes=0.001", f"--output={output}") == 0
    return output
