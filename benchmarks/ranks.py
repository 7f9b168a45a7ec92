"""Measures how many masks a second several processes evaluate, over one alone.

    torchrun --nproc-per-node=2 benchmarks/ranks.py                      # 100M parameters
    torchrun --nproc-per-node=2 benchmarks/ranks.py --shape builtin --output DIR

On a CPU each process is pinned to a core of its own and has one thread. Every round evaluates the
same masks twice, in turns: by the main process alone, while the others wait, and by all of them.
Losses that differ by a bit end the measurement. Beside GPUs nothing is pinned.
"""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from speed_work import load
from torch import Tensor
from transformers.utils import logging

from pgprune.agents.training.ranks_team import Ranks, serve
from pgprune.budget.budget import Budget
from pgprune.envs.judge import Evaluate, Judge
from pgprune.errors import PruningError
from pgprune.evaluation.timing import Spread
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig
from pgprune.runs.versions import versions
from pgprune.surgery.random_models import SHAPES
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.devices import choose_device
from pgprune.utils.files import check_new, new_directory
from pgprune.utils.options import Config, dump_yaml, from_dict, load_yaml, option, same_option
from pgprune.utils.process_ids import local_rank, rank, world_size


@dataclass(frozen=True)
class RanksConfig(Config):
    """Measurement: which model, how much, and where."""

    shape: str = option("100m", "model to measure", choices=["builtin", *SHAPES])
    prune_rate: float = option(0.5, "prune rate of the random masks", above=0, below=1)
    masks: int = option(4, "masks that each process evaluates in a round", minimum=1)
    batch_size: int = option(8, "sequences per batch", minimum=1)
    sequence_length: int = option(128, "tokens of each sequence", minimum=2)
    repeats: int = option(7, "rounds", minimum=1)
    device: str = same_option(ModelConfig, "device", "auto")
    output: str | None = option(
        None, "new directory for ranks.json", unset="none, the result is printed", metavar="DIR"
    )


def main() -> int:
    """Measures in the main process, and evaluates masks in the others."""
    logging.disable_progress_bar()
    if rank() > 0:
        return serve(judge_of)
    config = from_arguments(RanksConfig, ArgumentParser(__doc__, RanksConfig).parse_args())
    if world_size() == 1:
        raise PruningError("one process has nobody to share with; start it with torchrun")
    if config.output is not None:
        check_new(Path(config.output))
    setup = dump_yaml({"ranks": config})
    team = Ranks(setup)
    try:
        report = measure(judge_of(setup), team, config)
    finally:
        team.close()
    print(describe(report))
    if config.output is not None:
        with new_directory(Path(config.output)) as directory:
            (directory / "ranks.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def judge_of(setup: str) -> Judge:
    """Returns the judge of this process, pinned to one core if there is no GPU."""
    config = from_dict(RanksConfig, load_yaml(setup, "the settings")["ranks"])
    device = choose_device(config.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        cores = sorted(os.sched_getaffinity(0))
        if local_rank() >= len(cores):
            raise PruningError(f"there are {len(cores)} cores; start at most as many processes")
        os.sched_setaffinity(0, {cores[local_rank()]})
    model = load(config.shape, device, "auto")
    return Judge(MaskedLM(model, PruningUnits.of(model), "sliced"))


def measure(judge: Judge, team: Ranks, config: RanksConfig) -> dict[str, Any]:
    """Measures masks a second of the main process and of all, and their ratio by round."""
    lm, count = judge.lm, config.masks * world_size()
    generator = torch.Generator().manual_seed(0)
    budget = Budget(lm.units, config.prune_rate)
    scores = torch.rand(count, lm.units.n, generator=generator, dtype=torch.float64)
    masks = torch.stack([budget.round(row) for row in scores])  # (K, n)
    size = (config.batch_size, config.sequence_length)
    ids = torch.randint(int(lm.model.config.vocab_size), size, generator=generator)  # type: ignore
    judge.share(team)
    alone, together = [], []  # masks a second
    for done in range(-1, config.repeats):  # the first round warms up
        one, losses = _rate(judge.local, masks, ids)
        every, same = _rate(judge, masks, ids)
        if not torch.equal(losses, same):
            raise PruningError("the processes have found other losses than the main one alone")
        if done >= 0:
            alone.append(one)
            together.append(every)
    return {
        "command": ["torchrun", f"--nproc-per-node={world_size()}", *sys.argv],
        "processes": world_size(),
        "device": str(lm.device),
        "masks": count,
        "alone": alone,
        "together": together,
        "ratio": asdict(Spread.of_ratios(together, alone)),
        "versions": versions(),
    }


def describe(report: dict[str, Any]) -> str:
    """Summarizes a report in a few words."""
    one, every = (median(report[name]) for name in ("alone", "together"))
    return (
        f"{one:.2f} masks a second by one process, {every:.2f} by {report['processes']} with the "
        f"same losses: {report['ratio']['median']:.2f} times as many, median of "
        f"{len(report['alone'])} rounds (half of them {report['ratio']['low']:.2f} to "
        f"{report['ratio']['high']:.2f})"
    )


def _rate(judge: Evaluate, masks: Tensor, ids: Tensor) -> tuple[float, Tensor]:
    """Measures masks a second; returns it with the masks' losses."""
    started = time.perf_counter()
    losses = judge(masks, ids).cpu()
    return len(masks) / (time.perf_counter() - started), losses


if __name__ == "__main__":
    run_command(main, replicas=True)
