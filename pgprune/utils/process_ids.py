"""Reads the number of this process from the variables of torchrun and ``accelerate launch``."""

import os

WORKER = "PGPRUNE_WORKER"
"""Environment variable with the number of a process that measures cells."""


def rank() -> int:
    """Returns the number of this process; the main one, or the only one, has 0."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Returns the number of processes of the command on all hosts."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Returns the number of this process on its host."""
    return int(os.environ.get("LOCAL_RANK", 0))


def worker() -> int:
    """Returns the number of this process among those that measure cells in parallel."""
    return int(os.environ.get(WORKER, 0))


def local_world_size() -> int:
    """Returns the number of processes of the command on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
