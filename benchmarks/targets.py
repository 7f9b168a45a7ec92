"""Whether pruned models take the time and the memory that targets ask for, as a Markdown table.

    python benchmarks/targets.py --output DIR
    python benchmarks/targets.py --model smollm2 --output DIR
    python benchmarks/targets.py --shape 100m --output DIR
    python benchmarks/targets.py --output benchmarks/records --report --into docs/targets.md

Random scores are rounded to a mask within each target, it is cut out, and the smaller model and
the dense one are measured in turn. Speed depends on how much each layer keeps, not on which units.
Memory is that of the tensors: parameters, and keys and values of a batch that was read; in brackets
the share of it by which the resident memory of a new process grows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from memory_growth import cache_of, memory_growth
from transformers import PreTrainedModel

from pgprune.budget.bounds import bounds_of
from pgprune.budget.budget import BUDGETS, Budget
from pgprune.budget.targets import TIMES, Target
from pgprune.evaluation.latency import generate
from pgprune.evaluation.time_table import times
from pgprune.evaluation.timing import CLOCKS, Clock, Spread, measure_in_turn
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, load_model
from pgprune.surgery.layers import prune
from pgprune.surgery.random_models import SHAPES, random_models
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.devices import machine
from pgprune.utils.jsonl import Record, add_line, read_lines
from pgprune.utils.markdown import check_page, grid, renew_page
from pgprune.utils.options import Config, option

MARKER = "targets"
_NEW_TOKENS = 8


@dataclass(frozen=True)
class TargetsConfig(Config):
    """Targets: which are measured, and of which model."""

    model: str = option("builtin", "builtin, smollm2, a hub id or a directory")
    shape: str | None = option(
        None, "random weights of this shape in place of a model", choices=list(SHAPES), unset="none"
    )
    targets: tuple[str, ...] = option(
        ("prefill<=0.7@8x128", "decode<=0.7@1x128", "memory<=20MB@8x128"), "targets, each alone"
    )
    budget: str = option(
        "parameters", "how kinds trade, as --budget of runs", choices=list(BUDGETS)
    )
    rounds: int = option(7, "rounds over both models", minimum=1)
    clock: str = option("wall", "seconds of what", choices=list(CLOCKS))
    output: str = option("benchmarks/records", "directory of targets.jsonl", metavar="DIR")
    report: bool = option(False, "measure nothing, show the table of all records")
    into: tuple[str, ...] | None = option(
        None, "pages whose table is renewed", unset="print it", metavar="PAGE"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Adds a record for each target, and shows the table of all records."""
    config = from_arguments(TargetsConfig, ArgumentParser(__doc__, TargetsConfig).parse_args(words))
    pages = [Path(page) for page in config.into or ()]
    for page in pages:
        check_page(page, MARKER)
    records = Path(config.output) / "targets.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    if not config.report:
        model = dense_model(config)
        for text in config.targets:
            add_line(records, measure(model, Target.parse(text), config))
    text = table(read_lines(records))
    for page in pages:
        renew_page(page, MARKER, text)
    if not pages:
        print(text)
    return 0


def dense_model(config: TargetsConfig) -> PreTrainedModel:
    """Loads the model, or makes it up."""
    if config.shape is None:
        model, _ = load_model(ModelConfig(model=config.model))
        return model
    made = random_models(config.shape, (), (1,), torch.device("cpu"), torch.float32)
    return made[config.shape]


def measure(model: PreTrainedModel, target: Target, config: TargetsConfig) -> Record:
    """Prunes random units of a model to a target, and measures what it limits."""
    units = PruningUnits.of(model)
    (bound,) = bounds_of([target], model, units, tables=times)
    budget = Budget.within(units, [bound], config.budget)
    generator = torch.Generator().manual_seed(0)
    mask = budget.round(torch.rand(units.n, generator=generator, dtype=torch.float64))
    smaller = prune(model, units, mask)
    record: Record = {
        "model": config.shape or config.model,
        "target": target.text,
        "limit": target.limit,
        "counted": bound.value(mask),
        "parameters": sum(weight.numel() for weight in smaller.parameters()),
        "dense_parameters": sum(weight.numel() for weight in model.parameters()),
        "machine": machine(model.device) | {"clock": config.clock},
    }
    if target.quantity in TIMES:
        spread = time_ratio(smaller, model, target, config)
        return record | {"measured": spread.median, "quartiles": [spread.low, spread.high]}
    if target.quantity == "memory":
        growth = memory_growth(smaller, target.batch, target.length)
        return record | {"measured": tensor_bytes_of(smaller, target), "growth": growth}
    return record | {"measured": record["parameters"]}


def time_ratio(
    smaller: PreTrainedModel, dense: PreTrainedModel, target: Target, config: TargetsConfig
) -> Spread:
    """Measures the share of the dense model's time, in rounds of both models."""
    generator = torch.Generator().manual_seed(1)
    size = (target.batch, target.length + _NEW_TOKENS)
    ids = torch.randint(int(dense.config.vocab_size), size, generator=generator)
    works = {
        name: partial(generate, model, ids, target.length)
        for name, model in (("dense", dense), ("smaller", smaller))
    }
    dense.config.use_cache = True
    seconds, _ = measure_in_turn(works, config.rounds, Clock(dense.device, config.clock))
    place = TIMES.index(target.quantity)
    first, second = ([each[place] for each in seconds[name]] for name in ("smaller", "dense"))
    return Spread.of_ratios(first, second)


def tensor_bytes_of(model: PreTrainedModel, target: Target) -> int:
    """Counts the bytes of parameters, and of keys and values of a batch that was read."""
    total = sum(weight.nbytes for weight in model.parameters())
    layers = cache_of(model, target.batch, target.length).layers
    held = [layer for layer in layers if getattr(layer, "keys", None) is not None]
    return total + sum(layer.keys.nbytes + layer.values.nbytes for layer in held)


def table(records: Sequence[Record]) -> str:
    """Makes the table of all records, and says on what they were measured."""
    rows = []
    for record in records:
        said = Target.parse(record["target"]).said
        low, high = record.get("quartiles", (None, None))
        spread = "" if low is None else f" ({low:.3f} to {high:.3f})"
        spread += f" ({record['growth'] / record['measured']:.1%})" if "growth" in record else ""
        kept = record["parameters"] / record["dense_parameters"]
        rows.append(
            [
                record["model"],
                f"`{record['target']}`",
                said(record["counted"]).removesuffix(" of the dense time"),
                said(record["measured"]).removesuffix(" of the dense time") + spread,
                f"{kept:.0%}",
            ]
        )
    machines = {
        ", ".join(f"{name} {value}" for name, value in record["machine"].items())
        for record in records
    }
    head = ["model", "target", "as counted", "measured (quartiles; growth)", "parameters kept"]
    return f"{grid(head, rows)}\nMeasured on {'; '.join(sorted(machines))}; seed 0.\n"


if __name__ == "__main__":
    run_command(main)
