"""The records of a comparison by row and column, in which order rows are shown, which is best."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pgprune.utils.jsonl import Record

_PAPERS_RATE = 0.3
_DEPTH = ("layers", "blocks")

Column = tuple[str, float, str]
"""A model, a prune rate and an evaluation set."""


@dataclass(frozen=True)
class Row:
    """A method under a repair, over all models, rates and seeds.

    Attributes:
        method: as it was named.
        repair: ``none``, ``own``, or what was made of its mask.
        records: its measurements.
    """

    method: str
    repair: str
    records: list[Record]

    @property
    def kind(self) -> str:
        """Its ``needs``, with ``depth`` if it prunes whole layers or blocks."""
        first = self.records[0]
        return first["needs"] + (", depth" if first["granularity"] in _DEPTH else "")

    @property
    def forward_only(self) -> bool:
        """True if it needs no gradients of the model."""
        return self.records[0]["needs"] == "forward"

    def of(self, model: str, rate: float) -> list[Record]:
        """Returns its measurements of a model at a rate."""
        return [one for one in self.records if (one["model"], one["rate"]) == (model, rate)]

    def perplexities(self, column: Column) -> list[float]:
        """Returns its perplexities in a column, one a seed; infinite if not finite."""
        model, rate, name = column
        found = [record["perplexity"].get(name) for record in self.of(model, rate)]
        # JSON has no infinity: null stands for a perplexity that is not finite.
        return [math.inf if value is None else value for value in found]

    def mean(self, columns: Iterable[Column]) -> float:
        """Computes the geometric mean of perplexities over columns; NaN if one has none."""
        # A geometric mean, so that one column of large perplexities does not decide the order.
        logs = []
        for column in columns:
            values = self.perplexities(column)
            if not values:
                return math.nan
            logs.append(statistics.fmean(map(math.log, values)))
        return math.exp(statistics.fmean(logs))


def rows_of(records: Iterable[Record]) -> list[Row]:
    """Groups records into rows, in the order of the records; failures have no row."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if "error" not in record:
            groups[record["method"], record["repair"]].append(record)
    return [Row(*key, group) for key, group in groups.items()]


def columns_of(rows: Iterable[Row]) -> list[Column]:
    """Returns every model, rate and evaluation set of some rows; rates ascend."""
    found: dict[str, set[float]] = defaultdict(set)
    sets: dict[str, dict[str, None]] = defaultdict(dict)
    for record in (record for row in rows for record in row.records):
        found[record["model"]].add(record["rate"])
        sets[record["model"]] |= dict.fromkeys(record["perplexity"])
    return [
        (model, rate, name)
        for model, rates in found.items()
        for rate in sorted(rates)
        for name in sets[model]
    ]


def ranked(rows: Iterable[Row], columns: Sequence[Column]) -> list[Row]:
    """Sorts rows of the columns' models by mean log-perplexity; incomplete ones are last."""

    def place(row: Row) -> tuple[bool, float]:
        present = [column for column in columns if row.perplexities(column)]
        # What lacks a column cannot be compared by its mean, so it comes last.
        return len(present) < len(columns), row.mean(present)

    models = {model for model, _, _ in columns}
    return sorted((row for row in rows if models & {r["model"] for r in row.records}), key=place)


def best_forward(rows: Iterable[Row], columns: Sequence[Column]) -> Row | None:
    """Returns the best forward-only row that has all columns, if there is one."""
    whole = (row for row in ranked(rows, columns) if not math.isnan(row.mean(columns)))
    return next((row for row in whole if row.forward_only), None)


def rates_of(rows: Iterable[Row]) -> set[float]:
    """Returns the prune rates of some rows."""
    return {record["rate"] for row in rows for record in row.records}


def nearest_rate(rates: Iterable[float], wanted: float | None = None) -> float:
    """Returns the rate nearest to a wanted one; None stands for the paper's."""
    target = _PAPERS_RATE if wanted is None else wanted
    return min(sorted(rates), key=lambda rate: abs(rate - target))
