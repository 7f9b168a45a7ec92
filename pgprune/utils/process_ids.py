"""Which of a command's processes this one is, as torchrun and ``accelerate launch`` say it."""

import os

WORKER = "PGPRUNE_WORKER"
"""Where a process that measures cells finds its number."""


def rank() -> int:
    """Number of this process; 0 is the main one, also of a command that runs alone."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes the command was started as, on all hosts."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process on its host."""
    return int(os.environ.get("LOCAL_RANK", 0))


def worker() -> int:
    """Number of this process among those that measure cells side by side."""
    return int(os.environ.get(WORKER, 0))


def local_world_size() -> int:
    """How many processes the command was started as, on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
