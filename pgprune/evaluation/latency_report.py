"""Reports the latency of models: as JSON, as tables, and as a plot."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from pgprune.errors import printable
from pgprune.evaluation.latency import LatencyConfig, Measurement, Models
from pgprune.evaluation.timing import Spread, weight_bytes
from pgprune.runs.number_table import number_table
from pgprune.runs.versions import versions
from pgprune.utils.devices import machine
from pgprune.utils.figures import BEST, GREY, INITIAL, LEARNED, save_figure
from pgprune.utils.files import new_directory, saving, write_file
from pgprune.utils.markdown import grid

_MIB = 2**20
_MODEL_COLUMNS = ("model", "parameters", "weights (MiB)", "share")
_COLUMNS = (
    "batch x tokens",
    "model",
    "prefill (ms)",
    "times faster",
    "decode step (ms)",
    "times faster",
    "tokens/s",
    "peak memory (MiB)",
)


def make_report(
    models: Models,
    measurements: Sequence[Measurement],
    config: LatencyConfig,
    command: Sequence[str],
) -> dict[str, Any]:
    """Collects everything that was measured, as JSON holds it.

    Returns:
        ``command``, ``config``, ``machine``, ``versions``, ``models`` (name, parameters, dtype,
        weight_bytes and its share of the reference's) and ``measurements``: for each setting and
        model the seconds of every round, their medians, ``times_faster`` than the reference
        (median, low and high quartile of the rounds' ratios), ``tokens_per_second`` of decoding,
        and ``peak_bytes``, weights included.
    """
    weights = {name: weight_bytes(model) for name, model in models.items()}
    # The first model that was named is what the others are compared with.
    reference = next(iter(weights.values()))
    device = next(iter(models.values())).device
    return {
        "command": shlex.join(command),
        "config": asdict(config),
        "machine": machine(device, config.threads),
        "versions": versions(),
        "models": [
            {
                "name": name,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "dtype": str(model.dtype).removeprefix("torch."),
                "weight_bytes": weights[name],
                "weight_share": weights[name] / reference,
            }
            for name, model in models.items()
        ],
        "measurements": [
            _entry(measured, rows[0], weights[measured.model])
            for rows in _by_setting(measurements)
            for measured in rows
        ],
    }


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Prints the tables, the second one with a section for each setting."""
    (columns, models), ((_, *others), measurements) = _tables(report)
    table = number_table(columns, models)
    for row in models:
        table.add_row(*map(Text, map(printable, row)))
    console.print(table)
    table = number_table(others, [row for _, *row in measurements])
    for setting, rows in groupby(measurements, key=lambda row: row[0]):
        table.add_row(f"[bold]{setting} tokens")
        for _, *row in rows:
            table.add_row(*map(Text, map(printable, row)))
        table.add_section()
    console.print(table)


def write_report(report: Mapping[str, Any], output: Path) -> None:
    """Writes benchmark.json, benchmark.md and, where matplotlib is there, benchmark.png.

    Raises:
        PruningError: it exists by now, or cannot be written.
    """
    text = json.dumps(report, indent=2) + "\n"
    with saving(output, " or choose another --output"), new_directory(output) as directory:
        write_file(directory / "benchmark.json", text.encode())
        write_file(directory / "benchmark.md", markdown(report).encode())
        # A figure of gains over the reference needs another model.
        if len(report["models"]) > 1:
            _plot(report, directory / "benchmark.png")


def markdown(report: Mapping[str, Any]) -> str:
    """Writes the tables in Markdown, with the command and the machine."""
    machine = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    parts = [f"`{report['command']}` ({machine}; median ± half the interquartile range)"]
    for columns, rows in _tables(report):
        parts.append(grid(columns, rows).rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def _entry(measured: Measurement, reference: Measurement, weights: int) -> dict[str, Any]:
    """Makes the entry of one measurement; times are compared with those of the reference."""
    decode = Spread.of(measured.decode).median
    return {
        "model": measured.model,
        "batch_size": measured.batch_size,
        "sequence_length": measured.sequence_length,
        "prefill_seconds": Spread.of(measured.prefill).median,
        "decode_seconds": decode,
        "times_faster": {
            "prefill": asdict(Spread.of_ratios(reference.prefill, measured.prefill)),
            "decode": asdict(Spread.of_ratios(reference.decode, measured.decode)),
        },
        "tokens_per_second": measured.batch_size / decode,
        "peak_bytes": None if measured.working_bytes is None else weights + measured.working_bytes,
        "rounds": {"prefill_seconds": measured.prefill, "decode_seconds": measured.decode},
    }


def _by_setting(measurements: Sequence[Measurement]) -> list[list[Measurement]]:
    """Groups the measurements by setting, the reference's first."""
    groups = groupby(measurements, key=lambda row: (row.batch_size, row.sequence_length))
    return [list(group) for _, group in groups]


def _tables(report: Mapping[str, Any]) -> list[tuple[Sequence[str], list[list[str]]]]:
    """Returns columns and rows of the table of models and of that of measurements."""
    models = [
        [
            model["name"],
            f"{model['parameters']:,}",
            f"{model['weight_bytes'] / _MIB:,.1f}",
            f"{model['weight_share']:.1%}",
        ]
        for model in report["models"]
    ]
    return [(_MODEL_COLUMNS, models), (_COLUMNS, [_row(entry) for entry in report["measurements"]])]


def _row(entry: Mapping[str, Any]) -> list[str]:
    peak = entry["peak_bytes"]
    faster = entry["times_faster"]
    return [
        _setting(entry),
        entry["model"],
        f"{1e3 * entry['prefill_seconds']:,.1f}",
        str(Spread(**faster["prefill"])),
        f"{1e3 * entry['decode_seconds']:,.1f}",
        str(Spread(**faster["decode"])),
        f"{entry['tokens_per_second']:,.1f}",
        "-" if peak is None else f"{peak / _MIB:,.1f}",
    ]


def _setting(entry: Mapping[str, Any]) -> str:
    return f"{entry['batch_size']} x {entry['sequence_length']}"


def _plot(report: Mapping[str, Any], path: Path) -> None:
    """Draws how much faster and smaller each model is than the reference."""
    reference, *others = (model["name"] for model in report["models"])
    entries = {(entry["model"], _setting(entry)): entry for entry in report["measurements"]}
    settings = list(dict.fromkeys(setting for _, setting in entries))
    gains: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for phase in ("prefill", "decode"):
        gains[f"{phase}: times faster"] = {
            name: [
                (ratio["median"], ratio["low"], ratio["high"])
                for ratio in (entries[name, setting]["times_faster"][phase] for setting in settings)
            ]
            for name in others
        }
    # Memory is not known on every platform; without it there is no third panel.
    if all(entry["peak_bytes"] for entry in report["measurements"]):
        peaks = {key: entry["peak_bytes"] for key, entry in entries.items()}
        gains["peak memory: times smaller"] = {
            name: [(peaks[reference, s] / peaks[name, s],) * 3 for s in settings] for name in others
        }
    plot_gains(path, settings, gains, reference)


def plot_gains(
    path: Path,
    settings: Sequence[str],
    gains: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    reference: str,
) -> bool:
    """Draws how many times better models are than a reference, one panel for each quantity.

    Args:
        path: the PNG file.
        settings: the names of what was measured, S of them.
        gains: by panel and model, S of (median, low, high).
        reference: the name of the model whose gain is 1.

    Returns:
        Whether it was drawn: not without matplotlib.

    Raises:
        PruningError: the file cannot be written.
    """
    # Settings are names, at whole numbers on the axis.
    x = np.arange(len(settings))
    colors = (LEARNED, INITIAL, BEST, "#b0413e", "#7a5aa6", GREY)

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(gains), squeeze=False)[0]
        for panel, (title, models) in zip(panels, gains.items(), strict=True):
            # The bars of a setting share four fifths of its place.
            width = 0.8 / len(models)
            for number, (name, values) in enumerate(models.items()):
                middle, low, high = np.array(values).T  # each (S,)
                left = x - 0.4 + (number + 0.5) * width
                color = colors[number % len(colors)]
                panel.bar(left, middle, width, color=color, label=name)
                panel.vlines(left, low, high, color="black", linewidth=1)
            panel.axhline(1, color=GREY, linestyle="--", linewidth=1, label=reference)
            panel.set_xticks(x, settings)
            panel.set(xlabel="batch x tokens")
            panel.set_title(title, loc="left", weight="bold")
            panel.grid(axis="x", visible=False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))

    return save_figure(path, ((1.6 + 0.7 * len(settings)) * len(gains) + 1, 4.0), draw)
