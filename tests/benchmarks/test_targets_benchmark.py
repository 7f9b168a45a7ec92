"""The benchmark of targets: what a new process takes for a model."""

import sys
from pathlib import Path

import pytest

from pgprune.models.load import ModelConfig, load_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow  # a process of its own
def test_memory_grows_by_the_weights_and_by_the_cache(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from memory_growth import memory_growth

    model, _ = load_model(ModelConfig("builtin"))
    weights = sum(weight.nbytes for weight in model.parameters())
    alone, with_cache = (memory_growth(model, batch, 512) for batch in (0, 32))
    sys.modules.pop("memory_growth")
    assert weights <= alone < 1.5 * weights
    config = model.config
    cache = (
        2 * 32 * 512 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    )
    assert with_cache - alone == pytest.approx(cache, rel=0.2)
