"""Models of well-known shapes with random weights, to measure speed and memory without a download.

A random mask with the budget's exact counts is cut out of a dense random LLaMA, as surgery cuts a
learned one. Speed depends on how much each layer keeps, not on which units.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pgprune.budget.budget import Budget
from pgprune.masking.units import PruningUnits
from pgprune.models.shapes import shapes_of
from pgprune.surgery.layers import prune
from pgprune.utils.options import Config, option

SHAPES: dict[str, dict[str, Any]] = {
    "100m": {
        "vocab_size": 32_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
    "llama-2-7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    "llama-2-13b": {
        "vocab_size": 32_000,
        "hidden_size": 5120,
        "intermediate_size": 13_824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "max_position_embeddings": 4096,
    },
    "llama-3-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
}
"""Values of ``LlamaConfig`` by name."""


@dataclass(frozen=True)
class ShapeConfig(Config):
    """Random models: the shape of a LLaMA, and the random masks to cut out of it."""

    shape: str | None = option(
        None,
        "random weights of this shape in place of models",
        choices=list(SHAPES),
        unset="measure the given models",
        metavar="SHAPE",
    )
    prune_rates: tuple[float, ...] = option(
        (0.3, 0.5), "--shape: prune rates to compare", above=0, below=1
    )
    round_to: tuple[int, ...] = option(
        (1, 8), "--shape: round channels per layer to multiples of these", minimum=1
    )


def random_models(
    shape: str,
    prune_rates: Sequence[float],
    round_to: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    attn_implementation: str = "sdpa",
    seed: int = 0,
) -> dict[str, PreTrainedModel]:
    """Makes a dense model with random weights and pruned ones of it, by name, the dense one first.

    Args:
        shape: a key of ``SHAPES``.
        prune_rates: a pruned model for each; heads and channels each keep their share.
        round_to: for each rate a model for each of these, whose layers keep a multiple of it in
            channels.
        device: of the models.
        dtype: of the weights.
        attn_implementation: attention kernel of transformers.
        seed: of weights and masks.

    Raises:
        PruningError: a rate or a rounding that leaves nothing.
    """
    config = LlamaConfig(**SHAPES[shape])
    units = PruningUnits(shapes_of(config))  # checks the rates before weights are made
    masks = _random_masks(units, prune_rates, round_to, seed)
    with torch.random.fork_rng(), torch.device(device):  # the caller's generator stays
        torch.manual_seed(seed)
        dense = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attn_implementation
        )
    models = {shape: dense.eval()}
    for name, mask in masks.items():
        models[name] = prune(dense, units, mask)
    return {name: model.requires_grad_(False) for name, model in models.items()}


def _random_masks(
    units: PruningUnits, prune_rates: Sequence[float], round_to: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """Rounds the same random scores to masks (n,), by the names of the pruned models."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(units.n, generator=generator, dtype=torch.float64)  # (n,)
    masks = {}
    for rate, multiple in product(prune_rates, round_to):
        name = f"rate {rate:g}" + (f", by {multiple}" if multiple > 1 else "")
        masks[name] = Budget(units, rate, round_to=multiple).round(scores)
    return masks
