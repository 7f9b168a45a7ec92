"""Writes what the GPU benchmark has found as blocks of Markdown, one for each marker."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from speed_report import markdown

from pgprune.utils.jsonl import Record
from pgprune.utils.markdown import grid

MARKERS = ("gpu", "gpu-learning")
"""The places in pages: of tests, exactness and speed, and of learning."""

BOUND = 1.5
"""How many times the error of the dense model an error in bfloat16 may be."""

_AGENTS = ("auto", "reinforce")
_NOTHING = "Nothing of this was measured yet: no GPU was at hand.\n"
_ROWS = {"dense": "dense", "initial": "start", "masked": "learned"}
"""Rows of a run's perplexities by their names in the table."""


def blocks(records: Sequence[Record]) -> dict[str, str]:
    """Writes the block of each marker; of a part measured again, its last record counts."""
    latest = {record["part"]: record for record in records}
    writers = {"tests": _tests, "exactness": _exactness, "speed": markdown}
    parts = [_part(latest[name], write) for name, write in writers.items() if name in latest]
    agents = [latest[name] for name in _AGENTS if name in latest]
    return {
        "gpu": "\n".join(parts) or _NOTHING,
        "gpu-learning": _learning(agents) if agents else _NOTHING,
    }


def _part(record: Record, write: Callable[[Mapping[str, Any]], str]) -> str:
    head = f"**{record['part'].capitalize()}**, {_outcome(record)}\n"
    return f"{head}\n{write(record['found'])}" if record.get("found") else head


def _outcome(record: Record) -> str:
    """Says where a part was measured, and how it ended."""
    versions = record["versions"]
    software = [name for name in ("torch", "triton", "transformers") if name in versions]
    where = [record["machine"]["device"], *(f"{name} {versions[name]}" for name in software)]
    if record["tiny"]:
        where.append("tiny models that only try the part")
    why = f" ({record['why']})" if "why" in record else ""
    return f"{', '.join(where)}: {record['outcome']}{why}."


def _tests(found: Mapping[str, Any]) -> str:
    failed = f": {', '.join(found['failed'])}" if found["failed"] else ""
    return (
        f"Tests marked gpu: {found['passed']} passed, {found['skipped']} skipped, "
        f"{len(found['failed'])} failed{failed}.\n"
    )


def _exactness(found: Mapping[str, Any]) -> str:
    """Tabulates errors against float32, then distances from the pruned model."""
    made = found["comparisons"]
    own = [one for one in made if one["way"] == "dense"]
    errors, distances = ([one for one in made if key in one] for key in ("of_dense", "distance"))
    texts = []
    if errors:
        worst = max(one["of_dense"] for one in errors)
        texts.append(
            f"Error of the logits in bfloat16 against float32, {own[0]['layers']} layers, as a "
            f"multiple of the dense model's own error, which is {own[0]['error']:.1e} of the "
            f"logits. At most {worst:.2f}; the bound is {BOUND}:\n\n"
            f"{_by_way(errors, 'of_dense', '.2f')}"
        )
    if distances:
        texts.append(
            f"Distance of the logits from those of the pruned model, {distances[0]['layers']} "
            "layers, both in bfloat16, as a share of the logits:\n\n"
            f"{_by_way(distances, 'distance', '.1e')}"
        )
        texts.append(f"Mean loss, in nats a token:\n\n{_by_way(distances, 'loss', '.4f')}")
    return "\n".join(texts)


def _by_way(found: Sequence[Record], value: str, digits: str) -> str:
    """Tabulates a value by rate and way."""
    rates, ways = (list(dict.fromkeys(one[key] for one in found)) for key in ("rate", "way"))
    cells = {(one["rate"], one["way"]): f"{one[value]:{digits}}" for one in found}
    # A part that was stopped has no value for the last ways.
    lines = [[f"{rate:g}", *(cells.get((rate, way), "–") for way in ways)] for rate in rates]
    return grid(["rate", *ways], lines)


def _learning(agents: Sequence[Record]) -> str:
    """Tabulates evaluations, seconds and perplexities of each agent, and how it ended."""
    notes = "".join(f"- {record['part']}, {_outcome(record)}\n" for record in agents)
    ran = {record["part"]: record["found"] for record in agents if record.get("found")}
    if not ran:
        return notes
    first = next(iter(ran.values()))
    texts = list(first["perplexity"]["dense"])
    head = ["agent", "evaluations", "of", "seconds"]
    head += [f"{text}, {row}" for text in texts for row in _ROWS.values()]
    lines = []
    for agent, found in ran.items():
        counts = (found["mask_evaluations"], found["asked_evaluations"])
        lines.append([agent, *(f"{n:,}" for n in counts)])
        lines[-1].append(f"{found['method_cost']['seconds']:,.0f}")
        perplexity = found["perplexity"]
        lines[-1] += [f"{perplexity[row][text]:,.2f}" for text in texts for row in _ROWS]
    rate, calibration = first["prune_rate"]["requested"], ", ".join(first["calibration"])
    return (
        f"{first['model']}, {rate:.0%} pruned, chosen on {calibration}; seconds without those of "
        f"evaluating; perplexities:\n\n{grid(head, lines)}\n{notes}"
    )
