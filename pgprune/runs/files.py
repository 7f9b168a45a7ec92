"""Where runs are, and the names of the files in one, for all that writes or reads them."""

import shlex
from enum import StrEnum
from pathlib import Path

from pgprune.utils.files import check_new, check_place
from pgprune.utils.manifest import MANIFEST

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
        if (Path(output) / RunFile.CONFIG).is_file():
            remedy += f", or resume an interrupted run with --resume {shlex.quote(output)}"
        check_new(Path(output), remedy)
