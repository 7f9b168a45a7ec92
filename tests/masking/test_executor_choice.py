"""The choice of the executor: a pure function that is right where it matters."""

import pytest
import torch

from pgprune.masking.executor_choice import choose_executor
from pgprune.masking.units import PruningUnits
from pgprune.models.shapes import LayerShape


def units(hidden, channels, heads, layers=4, granularity="heads+channels") -> PruningUnits:
    """Units of a Llama layer with full attention and head size hidden / heads."""
    head_dim = hidden // heads
    shape = LayerShape(
        kv_heads=heads,
        query_heads_per_group=1,
        head_dim=head_dim,
        channels=channels,
        kv_group_cost=4 * head_dim * hidden,
        value_cost=2 * hidden,
        channel_cost=3 * hidden,
        attention_cost=4 * hidden**2 + hidden,
        mlp_cost=3 * hidden * channels + hidden,
    )
    return PruningUnits([shape] * layers, granularity)


TINY, LARGE = units(16, 44, 2), units(4096, 11008, 32)


def choose(units=LARGE, prune_rate=0.4, masks=2, tokens=1024, dtype=torch.float32, device="cpu"):
    return choose_executor(units, prune_rate, masks, tokens, dtype, device)


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "xpu"])
def test_tiny_layers_are_masked(device):
    assert choose(TINY, device=device) == "masked"


def test_large_layers_are_sliced_where_it_pays_for_copying_weights():
    assert choose() == "sliced"
    assert choose(tokens=16) == choose(prune_rate=0.01) == "masked"


def test_whole_layers_are_skipped_without_copying_anything():
    for granularity in ("layers", "blocks"):
        assert choose(units(1024, 2816, 16, granularity=granularity), tokens=256) == "sliced"


def test_the_choice_is_a_pure_function():
    assert len({choose() for _ in range(3)}) == 1
    masks = LARGE.ones()
    choose()
    assert torch.equal(LARGE.ones(), masks)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7])
def test_more_to_prune_never_turns_slicing_off(rate):
    if choose(prune_rate=rate) == "sliced":
        assert choose(prune_rate=rate + 0.2) == "sliced"
