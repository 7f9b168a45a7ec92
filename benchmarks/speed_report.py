"""Reports the speed of mask evaluations: as JSON, as tables, and as a plot."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgprune.evaluation.timing import Spread
from pgprune.runs.versions import versions
from pgprune.utils.devices import machine
from pgprune.utils.figures import save_figure
from pgprune.utils.files import new_directory, saving, write_file
from pgprune.utils.markdown import grid

_MIB = 2**20
_CURVES = {
    "masked / dense": "masked",
    "sliced / dense": "sliced",
    "kernels / dense": "sliced, Triton kernels",
    "products / dense": "products",
    "bound / dense": "(1 - r) blocks + head",
}
"""The curves of the plot by their labels; those of kernels only where they were measured."""
_COLUMNS = (
    "shape",
    "rate",
    "blocks (ms)",
    "head (ms)",
    "masked",
    "sliced",
    "kernels",
    "of bound",
    "of products",
    "GFLOP/s",
    "dense (MiB)",
    "masked (MiB)",
    "sliced (MiB)",
    "kernels (MiB)",
)
_LEGEND = (
    "Blocks and head with loss: the plain Hugging Face model. Masked, sliced: an evaluation's time "
    "over the sum of these. Of bound: sliced over (1 - rate) x blocks + head. Of products: sliced "
    "over its matrix products alone, which run at that many GFLOP/s. MiB: beside the weights, at "
    "the peak."
)
_OF_KERNELS = " Kernels: as sliced, with --kernels triton."


def make_report(
    shapes: Mapping[str, Mapping[str, Any]],
    agent: Mapping[str, Any],
    host: Mapping[str, Any],
    config: Any,
    device: torch.device,
    command: Sequence[str],
) -> dict[str, Any]:
    """Collects everything that was measured, as JSON holds it.

    Args:
        shapes: of ``measure``, by shape.
        agent: of ``measure_agent``.
        host: of ``measure_host``.
        config: of the measurement, a dataclass.
        device: where it was done.
        command: its words.

    Returns:
        ``command``, ``config``, ``machine``, ``versions``, ``agent``, ``host`` and ``shapes``, each
        with its measurements and ``rates``: for each prune rate the medians and quartiles of ratios
        of times of one round.
    """
    return {
        "command": shlex.join(command),
        "config": asdict(config),
        "machine": machine(device, config.threads) | {"clock": config.clock},
        "versions": versions(),
        "shapes": {
            name: {**found, "rates": {rate: ratios(found, rate) for rate in found["operations"]}}
            for name, found in shapes.items()
        },
        "agent": dict(agent),
        "host": dict(host),
    }


def ratios(found: Mapping[str, Any], rate: str) -> dict[str, Any]:
    """Computes medians and quartiles of ratios at a prune rate, and what the products reach."""
    rounds = found["rounds"]
    masked, sliced, products = (
        [seconds for (seconds,) in rounds[f"{name} {rate}"]]
        for name in ("masked", "sliced", "products")
    )
    dense = [blocks + head for blocks, head in rounds["dense"]]
    bound = [(1 - float(rate)) * blocks + head for blocks, head in rounds["dense"]]
    kernels = [seconds for (seconds,) in rounds.get(f"kernels {rate}", [])]
    measured = {"kernels / dense": _ratio(kernels, dense)} if kernels else {}
    return measured | {
        "masked / dense": _ratio(masked, dense),
        "sliced / dense": _ratio(sliced, dense),
        "products / dense": _ratio(products, dense),
        "bound / dense": _ratio(bound, dense),
        "sliced / bound": _ratio(sliced, bound),
        "sliced / products": _ratio(sliced, products),
        "products, operations per second": found["operations"][rate] / Spread.of(products).median,
    }


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Prints the table, without quartiles, and the agent's work."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns, rows, legend = _table(report)
    for column in columns:
        table.add_column(column.replace(" ", "\n"), justify="right")
    for row in rows:
        table.add_row(*(Text(cell.partition("±")[0]) for cell in row))
    console.print(table, f"{legend}\n\n{_sentences(report)}", sep="")


def markdown(report: Mapping[str, Any]) -> str:
    """Writes the tables in Markdown, with the command and the machine."""
    where = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    head = f"`{report['command']}` ({where}; median ± half the interquartile range)"
    columns, rows, legend = _table(report)
    return f"{head}\n\n{grid(columns, rows)}\n{legend}\n\n{_sentences(report)}\n"


def write_report(report: Mapping[str, Any], output: Path) -> None:
    """Writes speed.json, speed.md and, where matplotlib is there, speed.png.

    Args:
        report: of ``make_report``.
        output: a new directory.

    Raises:
        PruningError: it exists by now, or cannot be written.
    """
    with saving(output, " or choose another --output"), new_directory(output) as directory:
        write_file(directory / "speed.json", (json.dumps(report, indent=2) + "\n").encode())
        write_file(directory / "speed.md", markdown(report).encode())
        plot(report["shapes"], directory / "speed.png")


def plot(shapes: Mapping[str, Any], path: Path) -> bool:
    """Draws times as shares of the dense model's over the prune rate, one panel a shape."""

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
        for panel, (name, found) in zip(panels, shapes.items(), strict=True):
            rates = sorted(found["rates"], key=float)
            for key, label in _CURVES.items():
                if key not in found["rates"][rates[0]]:
                    continue
                spreads = [found["rates"][rate][key] for rate in rates]
                middle = [spread["median"] for spread in spreads]
                errors = [
                    [spread["median"] - spread["low"] for spread in spreads],
                    [spread["high"] - spread["median"] for spread in spreads],
                ]
                style = "--" if key == "bound / dense" else "o-"
                panel.errorbar(
                    [float(rate) for rate in rates], middle, errors, fmt=style, label=label
                )
            panel.axhline(1, color="#888888", linewidth=1)
            panel.set(xlabel="prune rate", ylim=(0, None))
            panel.set_title(name, loc="left", weight="bold")
        panels[0].set_ylabel("time / dense Hugging Face forward with loss")
        panels[0].legend()

    return save_figure(path, (4.5 * len(shapes) + 0.5, 4.2), draw)


def _ratio(times: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    return asdict(Spread.of_ratios(times, reference))


def _table(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]], str]:
    """Returns columns, a row for each prune rate of each shape, and a legend."""
    rows = [
        dict(zip(_COLUMNS, _row(name, found, rate, values), strict=True))
        for name, found in report["shapes"].items()
        for rate, values in found["rates"].items()
    ]
    measured = any(row["kernels"] != "-" for row in rows)
    columns = [name for name in _COLUMNS if measured or not name.startswith("kernels")]
    legend = _LEGEND + (_OF_KERNELS if measured else "")
    return columns, [[row[column] for column in columns] for row in rows], legend


def _row(name: str, found: Mapping[str, Any], rate: str, values: Mapping[str, Any]) -> list[str]:
    blocks, head = (
        1e3 * Spread.of(part).median for part in zip(*found["rounds"]["dense"], strict=True)
    )
    works = ("dense", *(f"{way} {rate}" for way in ("masked", "sliced", "kernels")))
    memory = [found["memory"].get(work) for work in works]
    return [
        name,
        rate,
        f"{blocks:,.1f}",
        f"{head:,.1f}",
        *(
            str(Spread(**values[key])) if key in values else "-"
            for key in (
                "masked / dense",
                "sliced / dense",
                "kernels / dense",
                "sliced / bound",
                "sliced / products",
            )
        ),
        f"{values['products, operations per second'] / 1e9:,.1f}",
        *("-" if size is None else f"{size / _MIB:,.0f}" for size in memory),
    ]


def _sentences(report: Mapping[str, Any]) -> str:
    return f"{_agent(report['agent'])}\n\n{_host(report['host'])}"


def _host(host: Mapping[str, Any]) -> str:
    dense, sliced = host["rounds"]["dense"], host["rounds"]["sliced"]
    plain = 1e3 * Spread.of(dense).median / host["layers"]
    ratio = Spread.of_ratios(sliced, dense).median
    return (
        f"What the host does to run a layer: {plain:.2f} ms in the plain model, {ratio:.2f} times "
        f"as much in a sliced evaluation ({host['layers']} layers with little to compute)."
    )


def _agent(agent: Mapping[str, Any]) -> str:
    parts = [1e3 * Spread.of(part).median for part in zip(*agent["rounds"], strict=True)]
    whole = 1e3 * Spread.of([sum(parts) for parts in agent["rounds"]]).median
    sampling, score, projection = (f"{part:.1f}" for part in parts)
    return (
        f"The agent's work of a step at {agent['units']:,} units: {whole:.1f} ms (sampling "
        f"{sampling}, score {score}, projection {projection})."
    )
