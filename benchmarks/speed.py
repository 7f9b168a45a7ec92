"""Measures what a mask evaluation costs beside the dense model, in one run.

    python benchmarks/speed.py --output DIR                          # 100M parameters, on a CPU
    python benchmarks/speed.py --shapes builtin 100m --prune-rates 0.5
    python benchmarks/speed.py --shapes llama-2-7b --output DIR      # random weights, on a GPU

Every round does all the work of a shape once: the plain Hugging Face forward with its loss (blocks
and head on their own), and for each prune rate an evaluation of a random mask by the masked and by
the sliced executor (on a GPU with Triton also by its kernels), and the matrix products that the
sliced one cannot do without, alone. Ratios are of times of one round; reported are their medians
and quartiles. Beside it stand the agent's own work of a step at LLaMA-2-7B's number of units,
and what a layer costs the host, however little there is to compute in it.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from speed_report import make_report, markdown, print_report, write_report
from speed_work import load, measure, measure_agent, measure_host, ways
from transformers.utils import logging

from pgprune.errors import PruningError
from pgprune.evaluation.timing import CLOCKS, Clock
from pgprune.models.load import DTYPES, ModelConfig
from pgprune.surgery.random_models import SHAPES
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.devices import choose_device
from pgprune.utils.files import check_new
from pgprune.utils.markdown import has_place, renew
from pgprune.utils.options import Config, option, same_option

NEED_A_GPU = ("llama-2-7b", "llama-2-13b", "llama-3-8b")
_MARKER = "speed"


@dataclass(frozen=True)
class SpeedConfig(Config):
    """Measurement: which models, how often, and where."""

    shapes: tuple[str, ...] = option(("100m",), "models to measure", choices=["builtin", *SHAPES])
    prune_rates: tuple[float, ...] = option(
        (0.3, 0.5, 0.7), "prune rates of the random masks", above=0, below=1
    )
    batch_size: int = option(8, "sequences per batch", minimum=1)
    sequence_length: int = option(128, "tokens of each sequence", minimum=2)
    repeats: int = option(7, "rounds", minimum=1)
    threads: int | None = option(None, "CPU threads", minimum=1, unset="torch's choice")
    clock: str = option(
        "wall",
        "wall time, or processor time of one CPU thread (for a shared machine)",
        choices=list(CLOCKS),
    )
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = option(
        "auto",
        "number format of the weights; auto is float32 on the CPU, else bfloat16",
        choices=["auto", *DTYPES],
    )
    output: str | None = option(
        None,
        "new directory for speed.json, its table and its plot",
        unset="none, the table is printed",
        metavar="DIR",
    )
    into: str | None = option(
        None, "Markdown page with a place for the table", unset="none", metavar="FILE"
    )


def main(arguments: list[str] | None = None, agent_shape: str = "llama-2-7b") -> None:
    """Parses the options, measures, and prints and writes the tables."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    words = sys.argv[1:] if arguments is None else arguments
    config = from_arguments(SpeedConfig, ArgumentParser(__doc__, SpeedConfig).parse_args(words))
    device = check(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    console, clock = Console(highlight=False), Clock(device, config.clock)
    console.width = max(console.width, 100)  # of the table
    batch = (config.batch_size, config.sequence_length)
    shapes = {}
    for name in config.shapes:
        console.print(f"measuring {name}, {config.repeats} rounds")
        model = load(name, device, config.dtype)
        shapes[name] = measure(
            model, config.prune_rates, batch, config.repeats, clock, ways(device)
        )
        del model
    agent = measure_agent(config.repeats, clock, agent_shape)
    host = measure_host(config.repeats, clock)
    command = ["python", "benchmarks/speed.py", *words]
    report = make_report(shapes, agent, host, config, device, command)
    print_report(report, console)
    if config.output is not None:
        write_report(report, Path(config.output))
        console.print(f"written to {config.output}", soft_wrap=True, markup=False)
    if config.into is not None:
        page = Path(config.into)
        page.write_text(renew(page.read_text(), _MARKER, markdown(report)))


def check(config: SpeedConfig) -> torch.device:
    """Chooses the device to measure on, and checks the options.

    Raises:
        PruningError: it is absent or too small for a shape, the clock does not fit, or what is to
            be written cannot be.
    """
    device = choose_device(config.device)
    for name in config.shapes:
        if name in NEED_A_GPU and device.type == "cpu":
            raise PruningError(
                f"the shape {name} is measured on a GPU only and the device is the CPU; take "
                "builtin or 100m, or a machine with a GPU"
            )
    if config.clock == "processor" and (device.type != "cpu" or config.threads != 1):
        raise PruningError(
            "--clock processor measures one thread of the CPU; give --threads 1 --device cpu with "
            "it, or take --clock wall"
        )
    if config.output is not None:
        check_new(Path(config.output))
    if config.into is not None:
        page = Path(config.into)
        if not page.is_file() or not has_place(page.read_text(), _MARKER):
            raise PruningError(
                f"{page} has no place for the table; write <!-- {_MARKER} --> and <!-- end --> "
                "into it, each on a separate line"
            )
    return device


if __name__ == "__main__":
    run_command(main)
