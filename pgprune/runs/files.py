"""Names of the files in the directory of a run, for everything that writes or reads one."""

from enum import StrEnum


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
