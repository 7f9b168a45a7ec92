"""Targets: what a pruned model must come down to, as a text that a person writes.

``parameters<=100M``, ``active-parameters<=1B`` (those that a token uses in a mixture of experts),
``memory<=6GB@8x8192`` (weights, and the cache of keys and values of 8 texts of 8,192 tokens),
``prefill<=0.7@8x512`` and ``decode<=0.7@1x512`` (share of the dense model's
time).
"""

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from pgprune.errors import PruningError


class _Quantity(NamedTuple):
    """What a target limits: its units by name, the batch that it needs, and an example."""

    units: dict[str, float]
    batch: str  # needed, allowed or refused
    example: str


_COUNTS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_BYTES = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "KB"))
_SHARES = {"": 1, "%": 0.01}
_QUANTITIES = {
    "parameters": _Quantity(_COUNTS, "refused", "parameters<=100M"),
    "active-parameters": _Quantity(_COUNTS, "refused", "active-parameters<=1B"),
    "memory": _Quantity(_BYTES, "allowed", "memory<=6GB@8x8192"),
    "prefill": _Quantity(_SHARES, "needed", "prefill<=0.7@8x512"),
    "decode": _Quantity(_SHARES, "needed", "decode<=0.7@1x512"),
}
QUANTITIES = tuple(_QUANTITIES)
"""What a target may limit."""

TIMES = ("prefill", "decode")
"""Quantities that are shares of the dense model's time."""

_FORM = re.compile(r"([^<=≤@]*)(?:<=|≤)([^@]*)(?:@(.*))?")
_VALUE = re.compile(r"(\d[\d_]*(?:\.\d+)?(?:e[+-]?\d+)?) ?([a-z%]*)", re.IGNORECASE)
_BATCH = re.compile(r"(\d+)[x×](\d+)")
_LARGEST = 2**50  # sums of costs stay exact in float64


@dataclass(frozen=True)
class Target:
    """A limit on one quantity of the pruned model.

    Attributes:
        text: as it was written.
        quantity: one of ``QUANTITIES``.
        limit: parameters, bytes, or a share of the dense model's time.
        batch: texts at once; 0 where the quantity has none.
        length: tokens of each of them; 0 where the quantity has none.
    """

    text: str
    quantity: str
    limit: float
    batch: int = 0
    length: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads a target.

        Raises:
            PruningError: it is none; the sentence names what is wrong and an example.
        """
        form = _FORM.fullmatch("".join(text.split()))
        if form is None:
            raise PruningError(
                f"target {text!r} is not of the form QUANTITY<=VALUE; write, for example, "
                f"{' or '.join(each.example for each in _QUANTITIES.values())}"
            )
        name, value, batch = form.groups()
        if (quantity := _QUANTITIES.get(name)) is None:
            raise PruningError(
                f"target {text!r} limits {name!r}, which is none of {', '.join(_QUANTITIES)}"
            )
        limit = _limit(text, value, quantity, name)
        return cls(text, name, limit, *_batch(text, batch, quantity))

    def said(self, value: float) -> str:
        """Says a value of the quantity with its unit."""
        if self.quantity in ("parameters", "active-parameters"):
            return f"{value:,.0f} {self.quantity.replace('-', ' ')}"
        if self.quantity == "memory":
            size, unit = next(each for each in _SIZES if value >= each[0] or each[0] == 1e3)
            return f"{value / size:,.3f} {unit}"
        return f"{value:.3f} of the dense time"


def parse_targets(texts: tuple[str, ...]) -> tuple[Target, ...]:
    """Reads targets that must all hold.

    Raises:
        PruningError: one is none, or two limit the same.
    """
    found = dict[tuple[str, int, int], Target]()
    for target in map(Target.parse, texts):
        key = target.quantity, target.batch, target.length
        if key in found:
            raise PruningError(
                f"targets {found[key].text!r} and {target.text!r} limit the same; keep the smaller"
            )
        found[key] = target
    return tuple(found.values())


def _limit(text: str, value: str, quantity: _Quantity, name: str) -> float:
    """Reads the value of a target with its unit."""
    found = _VALUE.fullmatch(value)
    if found is None:
        raise PruningError(
            f"target {text!r} needs a number above 0, not {value!r}; write, for example, "
            f"{quantity.example}"
        )
    number, unit = float(found[1].replace("_", "")), found[2].upper()
    if unit not in quantity.units:
        units = ", ".join(unit for unit in quantity.units if unit)
        raise PruningError(
            f"target {text!r} has the unit {found[2]!r}, but {name} is in {units}"
            if found[2]
            else f"target {text!r} needs a unit: one of {units}"
        )
    limit = number * quantity.units[unit]
    if limit <= 0 or limit > _LARGEST:
        raise PruningError(f"target {text!r} needs a number above 0 and below 1e15, not {value}")
    if name in TIMES and limit >= 1:
        raise PruningError(
            f"target {text!r} is a share of the dense model's time, so it must be below 1; write, "
            f"for example, {quantity.example}"
        )
    return limit


def _batch(text: str, batch: str | None, quantity: _Quantity) -> tuple[int, int]:
    """Reads the batch of a target: texts and tokens of each."""
    if batch is None and quantity.batch != "needed":
        return 0, 0
    found = _BATCH.fullmatch(batch or "")
    if quantity.batch == "refused":
        raise PruningError(f"target {text!r} does not depend on a batch; leave out @{batch}")
    if found is None or not 0 < int(found[1]) <= 2**31 or not 0 < int(found[2]) <= 2**31:
        raise PruningError(
            f"target {text!r} needs @BATCHxLENGTH, texts at once and tokens of each; write, for "
            f"example, {quantity.example}"
        )
    return int(found[1]), int(found[2])
