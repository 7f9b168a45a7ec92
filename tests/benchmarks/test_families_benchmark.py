"""The table of exactness: what is exact, what is refused, and that an error would be seen."""

import sys
from pathlib import Path

import pytest
import torch

from helpers.masks import case_of
from helpers.tiny import tiny_model
from pgprune.surgery.layers import prune


@pytest.fixture
def families(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import families

    yield families
    sys.modules.pop("families", None)


def test_layers_of_a_family_are_exact_and_heads_may_be_refused(families, monkeypatch):
    monkeypatch.setattr(families, "GRANULARITIES", ("heads+channels", "layers"))
    monkeypatch.setattr(families, "more_rounding", lambda case: 1.0)
    refused, exact = families.measure("olmo2")
    assert refused["refused"] == "its norms of queries and keys span all heads of a layer"
    assert exact["granularity"] == "layers"
    assert exact["float64"] <= 1e-14


def test_a_wrong_cut_is_seen(families, monkeypatch):
    def wrong(model, units, mask):
        cut = prune(model, units, mask)
        cut.get_parameter("model.norm.weight").data[0] += 1e-3
        return cut

    case = case_of(tiny_model("llama"), "layers")
    monkeypatch.setattr(families, "prune", wrong)
    assert families.difference(case, torch.float64) > 1e-6


def test_the_table_shows_all_number_formats_and_reasons_once(families):
    exact = {"float64": 0.0, "float32": 2.3e-7, "bfloat16": 1.204}
    records = [
        {"family": "a", "granularity": "blocks", **exact},
        {"family": "a", "granularity": "heads+channels", "refused": "it is odd"},
        {"family": "b", "granularity": "values+channels", "refused": "it is odd"},
    ]
    head, _, first, second, *_, note = families.table(records).strip().splitlines()
    assert head == "| family | heads+channels | values+channels | channels | blocks | layers |"
    assert first == "| `a` | refused (1) |  |  | exact · 2e-07 · 1.20 |  |"
    assert second == "| `b` |  | refused (1) |  |  |  |"
    assert note == "(1) it is odd."
