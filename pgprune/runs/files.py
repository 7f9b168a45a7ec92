"""Where runs are, and the names of the files in one, for all that writes or reads them."""

import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pgprune.errors import PruningError
from pgprune.utils.files import check_new, check_place, read_text
from pgprune.utils.manifest import MANIFEST
from pgprune.utils.options import load_yaml

RUNS = Path("runs")
"""Where runs without a directory of their own go."""


class RunFile(StrEnum):
    """A file of a run, or a directory, by its name below that of the run."""

    CONFIG = "config.yaml"
    COMMAND = "command.txt"
    VERSIONS = "versions.txt"
    PROGRESS = "progress.csv"
    TENSORBOARD = "tensorboard"
    CHECKPOINT = "checkpoint/checkpoint.safetensors"
    MASK = "mask.safetensors"
    REPAIR = "repair.safetensors"
    LEVELS = "levels"
    SLICES = "slices.json"
    ROTATIONS = "slices.safetensors"
    PLOTS = "plots"
    EVALUATIONS = "evaluations.jsonl"
    RESULTS = "results.json"
    SWEEP = "sweep.yaml"
    SWEEP_RESULTS = "sweep.json"
    CANDIDATES = "candidates.md"


LISTED = (
    *(RunFile.CONFIG, RunFile.COMMAND, RunFile.VERSIONS, RunFile.PROGRESS, RunFile.CHECKPOINT),
    *(RunFile.MASK, RunFile.REPAIR, RunFile.SLICES, RunFile.ROTATIONS, RunFile.RESULTS),
    f"{RunFile.LEVELS}/{MANIFEST}",
)
"""In the manifest of a run, beside plots: not what others put there, or what grows afterwards."""


def check_output(output: str | None) -> None:
    """Checks, before any long work, that a run's directory can be made.

    Args:
        output: the directory, or None for a new name in runs/.

    Raises:
        PruningError: it exists, or nothing may be written where it should be.
    """
    if output is None:
        check_place(RUNS)
    else:
        remedy = "choose another --output"
        if any(_may_resume(Path(output) / name) for name in (RunFile.CONFIG, RunFile.SWEEP)):
            remedy += f", or resume an interrupted run with --resume {shlex.quote(output)}"
        check_new(Path(output), remedy)


def is_resumable(sections: Mapping[str, Mapping[str, Any]]) -> bool:
    """Says whether an unfinished run can be resumed: not that of a method or of some agents.

    Args:
        sections: the content of config.yaml.
    """
    # Agents that cannot resume say so in what was decided when the run began.
    return "method" not in sections and sections.get("decided", {}).get("resumable") is not False


def _may_resume(config: Path) -> bool:
    """Whether there is a run that can be resumed; a damaged one gets another sentence then."""
    if not config.is_file():
        return False
    try:
        return is_resumable(load_yaml(read_text(config), str(config)))
    except PruningError:
        return True
