"""Bounds of times: a table stands for a device, and its lines are never below it."""

import json

import pytest
import torch

from helpers.tiny import tiny_model, toy_units
from pgprune import PruningError
from pgprune.budget.bounds import bounds_of
from pgprune.budget.budget import Budget
from pgprune.budget.targets import Target
from pgprune.budget.times import TimeTable, kept_table, table_path, time_bound
from pgprune.masking.units import PruningUnits
from pgprune.utils.devices import machine

UNITS = toy_units(layers=3, kv_heads=4, channels=16)
# A staircase: two widths of channels take the same time.
FALLS = {
    "heads": [[0, -1.0], [0.25, -0.7], [0.5, -0.5], [1, 0]],
    "channels": [[0, -1.6], [0.25, -1.1], [0.5, -0.4], [0.75, -0.4], [1, 0]],
}
TABLE = TimeTable(
    machine(torch.device("cpu")),
    {"prefill": 12.0, "decode": 12.0},
    {kind: {"prefill": falls, "decode": falls} for kind, falls in FALLS.items()},
)


@pytest.mark.parametrize("kind", ["per-kind", "parameters"])
@pytest.mark.parametrize("limit", [0.55, 0.7, 0.9])
def test_masks_are_within_the_time_by_the_table_itself(kind, limit):
    bound = time_bound(Target.parse(f"prefill<={limit}@8x512"), TABLE, UNITS)
    budget = Budget.within(UNITS, [bound], kind)
    for seed in range(5):
        mask = budget.round(torch.rand(UNITS.n, generator=torch.Generator().manual_seed(seed)))
        assert bound.value(mask) <= limit
        assert TABLE.seconds("prefill", UNITS, mask) == pytest.approx(12 * bound.value(mask))
        kept = int(bound.cost[mask.bool()].sum())
        assert bound.fixed + kept >= bound.measure(mask, 0), "a line is never below the table"
    assert bound.value(UNITS.ones()) == pytest.approx(1)


def test_an_equal_share_of_everything_uses_the_time_up():
    limit = 0.7 * 12
    share = TABLE.equal_share("prefill", UNITS, limit)
    lines = {kind: TABLE.line(kind, "prefill", share) for kind in UNITS.kinds}
    used = 12 + sum(lines[group.kind][0] + share * lines[group.kind][1] for group in UNITS.groups)
    assert used == pytest.approx(limit, abs=1e-6)


@pytest.fixture
def target_and_path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = tiny_model("llama")
    units, target = PruningUnits.of(model), Target.parse("decode<=0.7@1x20")
    return model, units, target, table_path(target, model, units)


def test_a_table_is_kept_for_the_user(target_and_path, tmp_path):
    model, units, target, path = target_and_path
    assert path.is_relative_to(tmp_path)
    with pytest.raises(PruningError, match="needs a table of times, and there is none at"):
        kept_table(target, model, units)
    TABLE.save(path)
    assert kept_table(target, model, units) == TABLE
    (bound,) = bounds_of([target], model, units)
    assert bound.value(units.ones()) == pytest.approx(1)


def test_a_table_of_another_device_is_refused_in_a_sentence(target_and_path):
    model, units, target, path = target_and_path
    TABLE.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": {"device": "H200"}}))
    with pytest.raises(PruningError, match="was measured on device H200, and this is device cpu"):
        kept_table(target, model, units)
    path.write_text("{")
    with pytest.raises(PruningError, match="is damaged"):
        kept_table(target, model, units)
