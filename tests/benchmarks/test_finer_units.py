"""The script that compares units of attention by their error."""

import pytest
import torch

from helpers.experiments_toy import ROOT, load
from pgprune.budget.problem import Problem


@pytest.fixture(scope="module")
def script():
    return load(ROOT / "benchmarks" / "finer_units.py")


def test_the_least_error_takes_the_cheaper_units(script):
    layer = {
        "channels": [(0.0, 0.0), (10.0, 1.0), (20.0, 4.0)],
        "values": [(10.0, 0.5)],
        "queries": [(10.0, 2.0)],
    }
    assert script.least_error([layer], (), 20) == 4
    assert script.least_error([layer], ("queries",), 20) == 3
    assert script.least_error([layer], ("queries", "values"), 20) == 1.5


def test_attention_as_it_is_leaves_no_error_and_fewer_units_leave_more(script):
    problem = Problem.make(granularity="values+channels", prune_rate=0.3)
    decoder, windows = problem.lm.model.model, problem.stream.head(4)
    with torch.no_grad():
        states = decoder.embed_tokens(windows)
        rotary = decoder.rotary_emb(states, torch.arange(windows.shape[1])[None])
        attention = script.Attention(decoder.layers[0], states, rotary)
        assert torch.allclose(
            attention.outputs.view_as(states),
            decoder.layers[0].self_attn(
                decoder.layers[0].input_layernorm(states), position_embeddings=rotary
            )[0],
            atol=1e-5,
        )
        for curve in (attention.queries(), attention.pairs()):
            errors = [0.0, *(error for _, error in curve)]
            assert errors == sorted(errors)
