"""benchmarks/gone_units.py: what it would gain to cut units out that are gone for good."""

import re
import sys
from pathlib import Path

import pytest

from helpers.tiny import toy_units
from pgprune.surgery.random_models import SHAPES

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def gone_units(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import gone_units

    yield gone_units
    sys.modules.pop("gone_units", None)


def test_the_mask_is_within_the_units_that_are_left(gone_units):
    units = toy_units(layers=3, kv_heads=4, channels=20)
    alive, mask = gone_units.masks(units, 0.25, 0.5)
    assert (mask <= alive).all()
    assert mask.sum() < alive.sum() < units.n
    assert len(units.kept_shares(alive[None]).unique()) == 1


def test_a_mask_has_the_same_losses_where_what_it_prunes_is_gone(gone_units, monkeypatch):
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    said = gone_units.measure("tiny", 0.25, 0.5, rounds=1)
    assert said.startswith("tiny, 25% of the units gone, a mask at 0.5: ")
    assert "of the time, the same bits;" in said
    assert re.search(r"weights \d+ MiB before, \d+ after$", said)
