"""Prints what a command has reached: tables, samples of text, and what to do next."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgprune.budget.targets import Target
from pgprune.errors import printable
from pgprune.runs.number_table import print_table
from pgprune.utils.command_names import spelled
from pgprune.utils.progress import duration

_WIDEST = 120  # characters that two columns of text are read well in
_ROWS = {
    "dense": "dense",
    "initial": "one-shot mask of the metric",
    "masked": "learned mask",
    "best": "best on the validation batch",
    "pruned": "learned mask, as shipped",
}


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Prints what a run reached.

    Args:
        results: the content of results.json. Its ``parameters`` may also hold ``initial`` and
            ``best``: what the metric's one-shot mask and the best mask on the validation batch
            leave, counted like ``pruned``. Its ``samples``, if any, are those of ``sample_text``.
        console: where to.
    """
    perplexity: Mapping[str, Mapping[str, float]] = results["perplexity"]
    errors: Mapping[str, Mapping[str, float]] = results.get("standard_error", {})
    sets = list(dict.fromkeys(name for row in perplexity.values() for name in row))
    labels = dict(_ROWS)
    if "method" in results:
        labels |= {"masked": f"mask of {results['method']}", "pruned": "the same, as shipped"}
    rows = {
        row: [
            labels[row],
            *(
                _perplexity(perplexity[row].get(name), errors.get(row, {}).get(name))
                for name in sets
            ),
            *_parameters(results["parameters"], row),
        ]
        for row in labels
        if perplexity.get(row) and not (row == "pruned" and _unrepaired(perplexity))
    }
    head = ["perplexity", *sets, "parameters", "of prunable"]
    learned = [number for number, row in enumerate(rows) if row == "masked"]
    print_table(head, list(rows.values()), console, bold=learned)
    windows = results.get("evaluation", {}).get("windows", {})
    counts = ", ".join(f"{count:,} of {name}" for name, count in windows.items())
    summary = {
        "pruned": f"{results['prune_rate']['achieved']:.2%} of the prunable parameters "
        f"({results['prune_rate']['requested']:.2%} asked)",
        "mask evaluations": f"{results['mask_evaluations']:,}",
        "tokens": f"{results['tokens']:,}",
        "time": duration(results["seconds"]),
        "peak memory": f"{results['peak_memory_bytes'] / 2**20:,.0f} MiB",
    }
    for number, each in enumerate(results.get("targets", ()), 1):
        reached = Target.parse(each["target"]).said(each["reached"])
        summary[f"target {number}"] = f"{each['target']}: {reached}"
    if errors:
        summary["windows"] = f"{counts}; ± is the standard error over them"
    for label, value in summary.items():
        console.print(f"{label:<18}{printable(value)}", soft_wrap=True, markup=False)
    print_samples(results.get("samples", ()), console)


def print_samples(samples: Iterable[Mapping[str, str]], console: Console) -> None:
    """Prints each prompt of ``sample_text``, and below it the two models' texts side by side."""
    for sample in samples:
        # The prompt is one line of the title: line breaks of code would tear it.
        prompt = " ".join(_shown(sample["prompt"]).split())
        table = Table(
            title=Text.assemble(
                (f"{printable(sample['text'])}: ", "bold"), (f"{prompt} ...", "dim")
            ),
            title_justify="left",
            title_style="",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            width=min(console.width, _WIDEST),
        )
        for row in ("dense", "pruned"):
            table.add_column(f"{row} model", ratio=1, overflow="fold")
        texts = (_shown(sample[row]).removeprefix(" ") for row in ("dense", "pruned"))
        table.add_row(*(Text(text.strip("\n")) for text in texts))
        # Markup is off in texts: a model may write [bold] and mean it.
        console.print("", table)


def print_next(commands: Sequence[str], console: Console) -> None:
    """Prints commands to suggest, if there are any."""
    if commands:
        console.print("\n[bold]Next")
    for command in commands:
        console.print(f"  {printable(spelled(command))}", soft_wrap=True, markup=False)


def _shown(text: str) -> str:
    """Returns a text that a model has written as a terminal may show it."""
    return printable(text.expandtabs(4), kept="\n")


def with_error(value: float, error: float | None) -> str:
    """Writes a perplexity and, where there is one, its standard error over windows."""
    if error is None or not 0 < error < math.inf:
        return f"{value:,.3f}"
    digits = min(3, max(0, 1 - math.floor(math.log10(error))))  # two that count
    return f"{value:,.3f} ± {error:,.{digits}f}"


def _perplexity(value: float | None, error: float | None) -> str:
    return "-" if value is None else with_error(value, error)


def _unrepaired(perplexity: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether the model is shipped as it was masked, which makes a second row superfluous."""
    return perplexity["pruned"] == perplexity.get("masked")


def _parameters(parameters: Mapping[str, int], row: str) -> tuple[str, str]:
    """Returns the parameters of a row's model, and the share of the prunable ones that it keeps."""
    count = parameters.get(row, parameters.get("pruned") if row == "masked" else None)
    if count is None:
        return "-", "-"
    removed = parameters["dense"] - count
    return f"{count:,}", f"{1 - removed / parameters['prunable']:.2%}"
