"""A table of times of a model by what its layers keep, measured once for a device and kept.

How long a layer takes falls with what it keeps of each kind; the falls of kinds and layers add up.
A line above the falls of a kind, the lowest where equal shares of everything meet the target, gives
each unit a time, which a bound can add up. What a mask comes to is read off the table itself,
between its entries in proportion.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune.budget.bound import Bound
from pgprune.budget.targets import Target
from pgprune.errors import PruningError, first_line
from pgprune.masking.units import PruningUnits
from pgprune.utils.devices import machine
from pgprune.utils.files import read_text, user_path, write_file
from pgprune.utils.jsonl import parse_json

_PICO = 1e12  # costs are whole picoseconds
_BISECTIONS = 40


@dataclass(frozen=True)
class TimeTable:
    """Seconds of a model for one batch, by phase: ``prefill``, or ``decode`` of a token.

    Attributes:
        machine: that it was measured on.
        dense: seconds of the dense model by phase.
        falls: by kind and phase, how much less a layer takes (negative seconds) at a share of its
            units, as pairs of both with rising shares; 0 at all of them.
    """

    machine: dict[str, Any]
    dense: dict[str, float]
    falls: dict[str, dict[str, list[list[float]]]]

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Self:
        """Reads a table.

        Raises:
            PruningError: it is damaged, or of another device.
        """
        try:
            table = cls(**parse_json(read_text(path)))
        except (TypeError, ValueError) as error:
            raise PruningError(
                f"the table of times {path} is damaged ({first_line(error)}); remove it"
            ) from error
        if table.machine != machine(device):
            raise PruningError(
                f"the table of times {path} was measured on {_said(table.machine)}, and this is "
                f"{_said(machine(device))}; remove it to measure here"
            )
        return table

    def save(self, path: Path) -> None:
        """Writes the table.

        Raises:
            OSError: the disk is full or refuses.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(asdict(self), indent=1).encode())

    def seconds(self, phase: str, units: PruningUnits, mask: Tensor) -> float:
        """Computes the time of a phase under a mask (n,)."""
        shares = units.kept_shares(mask[None])[0].tolist()  # (groups,)
        total = self.dense[phase]
        for group, share in zip(units.groups, shares, strict=True):
            known, falls = zip(*self.falls[group.kind][phase], strict=True)
            total += float(np.interp(share, known, falls))
        return total

    def line(self, kind: str, phase: str, share: float) -> tuple[float, float]:
        """Finds the line above the falls of a kind that is the lowest at a share.

        Returns:
            Its seconds at a share of 0, and their rise from there to 1, at least 0.
        """
        shares, falls = np.array(self.falls[kind][phase]).T
        rises = {
            float((falls[j] - falls[i]) / (shares[j] - shares[i]))
            for i, j in combinations(range(len(shares)), 2)
        }
        lines = [(float((falls - rise * shares).max()), rise) for rise in {0.0, *rises}]
        return min(lines, key=lambda line: line[0] + line[1] * share)

    def equal_share(self, phase: str, units: PruningUnits, limit: float) -> float:
        """Finds the share that all groups may keep within a number of seconds."""
        low, high = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            lines = {kind: self.line(kind, phase, middle) for kind in units.kinds}
            falls = sum(sum((1, middle) * np.array(lines[g.kind])) for g in units.groups)
            low, high = (low, middle) if self.dense[phase] + falls > limit else (middle, high)
        return low


Tables = Callable[[Target, PreTrainedModel, PruningUnits], TimeTable]
"""Returns the table of times that a target needs."""


def table_path(target: Target, model: PreTrainedModel, units: PruningUnits) -> Path:
    """Returns where the table of a model, a number format and a batch is kept, for the user."""
    facts = [model.config.model_type, model.config.vocab_size, units.granularity, units.shapes]
    facts += [model.dtype, model.device.type, torch.get_num_threads()]
    digest = hashlib.sha256(f"{facts} {target.batch}x{target.length}".encode()).hexdigest()[:16]
    cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pgprune"
    return cache / "times" / f"{digest}.json"


def kept_table(target: Target, model: PreTrainedModel, units: PruningUnits) -> TimeTable:
    """Reads the table of times that a target needs.

    Raises:
        PruningError: none was measured, or as ``TimeTable.load``.
    """
    path = table_path(target, model, units)
    if not path.exists():
        raise PruningError(
            f"target {target.text!r} needs a table of times, and there is none at {path}; "
            "pgprune train and pgprune prune measure it"
        )
    return TimeTable.load(path, model.device)


def time_bound(target: Target, table: TimeTable, units: PruningUnits) -> Bound:
    """Makes the bound of a share of the dense model's time."""
    phase, dense = target.quantity, table.dense[target.quantity] * _PICO
    cost, fixed = torch.zeros(units.n, dtype=torch.int64), dense
    share = table.equal_share(phase, units, target.limit * table.dense[phase])
    lines = {kind: table.line(kind, phase, share) for kind in units.kinds}
    for group in units.groups:
        least, rise = lines[group.kind]
        fixed += least * _PICO
        size = max(1, group.stop - group.start)
        cost[group.start : group.stop] = math.ceil(rise * _PICO / size)

    def measure(mask: Tensor, added: int) -> int:
        return math.floor(table.seconds(phase, units, mask) * _PICO)

    limit = math.floor(target.limit * dense)
    return Bound(target, cost, math.ceil(fixed), limit, measure, scale=dense)


def _said(machine: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in machine.items())
