"""Reports an analysis: as JSON, as tables in a terminal and in Markdown, and as a picture."""

import json
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from pgprune.analysis.analyze import Analysis
from pgprune.analysis.census import KINDS
from pgprune.analysis.needs import SHARES
from pgprune.analysis.picture import plot_sensitivity
from pgprune.analysis.sensitivity import KEPT, Sensitivity
from pgprune.models.load import DTYPES
from pgprune.runs.number_table import print_table
from pgprune.runs.versions import versions
from pgprune.utils.files import new_directory, saving, write_file
from pgprune.utils.jsonl import finite
from pgprune.utils.markdown import grid, plain
from pgprune.utils.options import to_dict

_MIB = 2**20
_NAMED = 3  # groups that are named as the most and the least sensitive


class Section(NamedTuple):
    """A table with a title, and sentences below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def size_sections(analysis: Analysis) -> list[Section]:
    """Makes the tables of what the model is made of, and of what less of it needs."""
    census, itemsize = analysis.census, DTYPES[analysis.dtype].itemsize
    batch, context = analysis.cached
    rows = [
        [kind, f"{count:,}", f"{count / census.total:.1%}", _mib(itemsize * count)]
        for kind, count in census.parameters.items()
    ]
    rows.append(["all", f"{census.total:,}", "100.0%", _mib(itemsize * census.total)])
    cache = itemsize * sum(census.cache)
    notes = [
        f"The cache of keys and values takes {cache:,} bytes a token in {analysis.dtype}, "
        f"{_mib(cache * batch * context)} MiB for {batch} x {context:,} tokens."
    ]
    if census.tied:
        notes.append("The head is the embeddings.")
    for granularity, units in analysis.units.items():
        notes.append(f"{granularity}: {units.prunable / census.total:.1%} can be pruned ({units}).")
    head = ["parameters", "number", "share", f"MiB in {analysis.dtype}"]
    sections = [Section("What the model is made of", head, rows, notes), _layers(analysis)]
    sections += [_needs(analysis)] if analysis.units else []
    return sections + ([_targets(analysis)] if analysis.targets else [])


def sensitivity_section(analysis: Analysis, found: Sequence[Sensitivity]) -> Section:
    """Makes the table of how much the loss rises without parts of single layers."""
    kinds = list(dict.fromkeys(item.group.kind for item in found))
    head = ["layer", *(f"{kind} {share:.0%}" for kind in kinds for share in KEPT)]
    rows = []
    for layer, items in groupby(found, key=lambda item: item.group.layer):
        by_kind = {item.group.kind: item.rises for item in items}
        cells = [by_kind.get(kind, [math.nan] * len(KEPT)) for kind in kinds]
        rows.append([str(layer), *(_nats(rise) for of_kind in cells for rise in of_kind)])
    usual = statistics.median(chain.from_iterable(item.errors for item in found))
    notes = [
        "The rise of the loss in nats a token, when one layer keeps a share of its units of one "
        f"kind (chosen by {analysis.metric}) and nothing else is pruned. Rises do not add up: what "
        "several layers lose together can cost more or less.",
    ]
    if math.isfinite(usual):
        notes.append(f"Half of the standard errors over windows are below {usual:.4f}.")
    half = KEPT.index(0.5)
    ordered = sorted(found, key=lambda item: -_number(item.rises[half]))
    if len(ordered) > 2 * _NAMED:
        most, least = ordered[:_NAMED], ordered[: -_NAMED - 1 : -1]
        notes.append(
            f"At half of their units, {_named(most)} cost most, and {_named(least)} least."
        )
    return Section("How much the loss rises", head, rows, notes)


def print_sections(sections: Sequence[Section], console: Console) -> None:
    """Prints tables with their titles and notes."""
    for section in sections:
        console.print(f"\n[bold]{section.title}")
        print_table(section.head, section.rows, console)
        for note in section.notes:
            console.print(note, markup=False)


def write_report(
    analysis: Analysis,
    found: Sequence[Sensitivity],
    command: Sequence[str],
    output: Path,
) -> None:
    """Writes analysis.json, analysis.md and, with sensitivities and matplotlib, sensitivity.png.

    Raises:
        PruningError: the directory exists by now, or cannot be written.
    """
    text = json.dumps(finite(_facts(analysis, found, command)), indent=2) + "\n"
    page = _page(analysis, found, command)
    with saving(output, " or choose another --output"), new_directory(output) as directory:
        write_file(directory / "analysis.json", text.encode())
        if found and plot_sensitivity(directory / "sensitivity.png", found, analysis.name):
            page += "\n![Rise of the loss by layer and kind](sensitivity.png)\n"
        write_file(directory / "analysis.md", page.encode())


def _facts(
    analysis: Analysis, found: Sequence[Sensitivity], command: Sequence[str]
) -> dict[str, Any]:
    """Collects everything, as JSON holds it."""
    batch, context = analysis.cached
    census, itemsize = analysis.census, DTYPES[analysis.dtype].itemsize
    return {
        "command": shlex.join(command),
        "model": analysis.source,
        "pruned": analysis.pruned,
        "settings": to_dict(analysis.config),
        "dtype": analysis.dtype,
        "parameters": {"all": census.total, **census.parameters},
        "layers": census.layers,
        "cache": {
            "numbers_per_token": census.cache,
            "batch_size": batch,
            "context": context,
            "bytes": itemsize * batch * context * sum(census.cache),
        },
        "memory_bytes": census.memory(itemsize, batch * context),
        "prunable": {name: units.prunable for name, units in analysis.units.items()},
        "shares": SHARES,
        "needs": [asdict(need) for need in analysis.needs()],
        "targets": analysis.targets,
        "kept_shares": KEPT,
        "sensitivity": [
            {
                "layer": item.group.layer,
                "kind": item.group.kind,
                "units": item.group.stop - item.group.start,
                "kept": item.kept,
                "rise": item.rises,
                "standard_error": item.errors,
            }
            for item in found
        ],
        "metric": analysis.metric if found else None,
        "versions": versions(),
    }


def _page(analysis: Analysis, found: Sequence[Sensitivity], command: Sequence[str]) -> str:
    sections = size_sections(analysis)
    sections += [sensitivity_section(analysis, found)] if found else []
    parts = [f"# {plain(analysis.name)}, analyzed", f"`{shlex.join(command)}`"]
    for section in sections:
        parts += [f"## {section.title}", grid(section.head, section.rows).rstrip("\n")]
        parts += list(map(plain, section.notes))
    return "\n\n".join(parts) + "\n"


def _layers(analysis: Analysis) -> Section:
    """Makes the table of layers, with a row for neighbours that are equal."""
    census = analysis.census
    kinds = [kind for kind in KINDS if any(kind in layer for layer in census.layers)]
    rows, first = [], 0
    for (layer, cache), same in groupby(zip(census.layers, census.cache, strict=True)):
        last = first + len(list(same)) - 1
        name = str(first) if first == last else f"{first} to {last}"
        counts = [layer.get(kind, 0) for kind in kinds]
        rows.append([name, *(f"{count:,}" for count in (*counts, sum(counts), cache))])
        first = last + 1
    return Section("Each layer", ["layer", *kinds, "all", "cache, numbers a token"], rows, [])


def _needs(analysis: Analysis) -> Section:
    """Makes the table of prune rates that less parameters and memory need."""
    batch, context = analysis.cached
    names = {"parameters": "parameters", "memory": f"memory at {batch} x {context:,}"}
    rows = []
    for need in analysis.needs():
        rates = ["no" if rate is None else f"{rate:.3f}" for rate in need.rates]
        least = f"{need.least / need.dense:.0%}"
        rows.append([names[need.what], need.granularity, *rates, least])
    return Section(
        "The prune rate that less needs",
        ["of the dense model", "units", *(f"{share:.0%}" for share in SHARES), "smallest"],
        rows,
        [
            "Memory is that of weights and cache. Rates are those of --prune-rate, where each kind "
            "of unit is pruned by the same share; no: even without all units there is more."
        ],
    )


def _targets(analysis: Analysis) -> Section:
    """Makes the table of prune rates that the targets need together."""
    rows, notes = [], []
    for granularity, need in analysis.targets.items():
        met = isinstance(need, float)
        rows.append([granularity, f"{need:.4f}" if met else "no"])
        if not met:
            notes.append(f"{granularity}: {need}")
    asked = " ".join(analysis.config.target or ())
    return Section("What the targets need", ["units", f"rate for {asked}"], rows, notes)


def _named(items: Sequence[Sensitivity]) -> str:
    return ", ".join(f"{item.group.kind} of layer {item.group.layer}" for item in items)


def _number(rise: float) -> float:
    return rise if math.isfinite(rise) else math.inf


def _nats(rise: float) -> str:
    return "-" if math.isnan(rise) else f"{round(rise, 3) + 0.0:.3f}"  # no -0.000


def _mib(size: float) -> str:
    return f"{size / _MIB:,.1f}"
