"""A table of times is measured on shallow models, kept, and read again."""

import pytest

from helpers.tiny import tiny_model
from pgprune import PruningError
from pgprune.budget.targets import Target
from pgprune.budget.times import table_path
from pgprune.evaluation.time_table import measure_times, times
from pgprune.masking.units import PruningUnits


@pytest.mark.parametrize(
    "family, granularity", [("gemma2", "heads+channels"), ("opt", "blocks"), ("llama", "layers")]
)
def test_falls_rise_to_none_at_all_units(family, granularity):
    model = tiny_model(family).float()
    units = PruningUnits.of(model, granularity)
    table = measure_times(model, units, batch=1, length=12, rounds=1)
    assert set(table.falls) == set(units.kinds)
    assert all(seconds > 0 for seconds in table.dense.values())
    for of_phases in table.falls.values():
        for pairs in of_phases.values():
            shares, falls = zip(*pairs, strict=True)
            assert shares[0] == 0 and shares[-1] == 1 and falls[-1] == 0
            assert list(shares) == sorted(shares) and list(falls) == sorted(falls)


def test_a_table_is_measured_once(tmp_path, monkeypatch, heard):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pgprune.evaluation.time_table._ROUNDS", 1)
    model = tiny_model("llama").float()
    units, target = PruningUnits.of(model), Target.parse("prefill<=0.9@1x12")
    table = times(target, model, units)
    assert table_path(target, model, units).exists()
    monkeypatch.setattr("pgprune.evaluation.time_table.measure_times", None)
    assert times(target, model, units) == table


def test_a_text_longer_than_the_context_is_refused():
    model = tiny_model("llama")
    with pytest.raises(PruningError, match="do not fit into the context of 64"):
        measure_times(model, PruningUnits.of(model), batch=1, length=60)
