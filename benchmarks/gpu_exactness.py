"""Compares every way to evaluate a mask with float32 and with the pruned model, in bfloat16.

    python benchmarks/gpu_exactness.py --output FILE                  # LLaMA-2-7B shapes, on a GPU
    python benchmarks/gpu_exactness.py --shape tiny --device cpu --output FILE

Random weights and random masks. The first layers are computed in float32 as well, by Hugging Face's
modules after surgery: the error of a way stands beside the error that bfloat16 alone makes in the
dense model. Of the whole model, the ways are compared with the model that surgery cuts in bfloat16.
Every comparison is one line of FILE as soon as it is made.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from speed_work import ways
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.utils import logging

from pgprune.budget.budget import Budget
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig
from pgprune.surgery.layers import prune
from pgprune.surgery.random_models import SHAPES
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.devices import check_dtype, choose_device
from pgprune.utils.jsonl import Record, add_line
from pgprune.utils.memory import within_memory
from pgprune.utils.options import Config, option, same_option

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
"""A shape for a CPU, where Triton's interpreter takes its time."""

_BATCH = {"tiny": (1, 8)}  # sequences and tokens of each; others as below
_USUAL_BATCH = (2, 128)


@dataclass(frozen=True)
class ExactnessConfig(Config):
    """Comparison: which shape, and where."""

    shape: str = option("llama-2-7b", "shape of the model", choices=["tiny", *SHAPES])
    layers: int = option(4, "layers that are computed in float32 as well", minimum=1)
    prune_rates: tuple[float, ...] = option(
        (0.3, 0.5), "prune rates of the random masks", above=0, below=1
    )
    device: str = same_option(ModelConfig, "device", "auto")
    output: str = option("exactness.jsonl", "new file of the comparisons", metavar="FILE")


def main(words: Sequence[str] | None = None) -> None:
    """Parses the options, compares, and writes and prints every comparison.

    Raises:
        PruningError: the file exists, or the device lacks bfloat16 or memory.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    config = from_arguments(
        ExactnessConfig, ArgumentParser(__doc__, ExactnessConfig).parse_args(words)
    )
    device, output = choose_device(config.device), Path(config.output)
    check_dtype(torch.bfloat16, device)
    if output.exists():
        raise PruningError(f"{output} exists; choose another --output")
    with within_memory("choose a smaller --shape or fewer --layers"):
        for record in compare(config, device):
            add_line(output, record)
            print(*(f"{name} {value}" for name, value in record.items()), sep=", ", flush=True)


def compare(config: ExactnessConfig, device: torch.device) -> Iterator[Record]:
    """Yields the comparisons: of the first layers with float32, then of the whole model."""
    shape = TINY if config.shape == "tiny" else SHAPES[config.shape]
    rates, batch = config.prune_rates, _BATCH.get(config.shape, _USUAL_BATCH)
    few = make(
        shape | {"num_hidden_layers": min(config.layers, shape["num_hidden_layers"])}, device
    )
    yield from against_float32(few, rates, token_ids(few, batch))
    del few
    whole = make(shape, device)
    yield from against_pruned(whole, rates, token_ids(whole, batch))


def make(shape: dict[str, int], device: torch.device) -> PreTrainedModel:
    """Makes a LLaMA with random weights in bfloat16, on its device."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
    return model.eval().requires_grad_(False)


def token_ids(model: PreTrainedModel, batch: tuple[int, int]) -> Tensor:
    """Draws token ids of a batch, (B, T) int64, on the model's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, batch, generator=generator).to(model.device)


def against_float32(
    model: PreTrainedModel, rates: Sequence[float], ids: Tensor
) -> Iterator[Record]:
    """Yields, for each rate and way, its error against float32.

    Returns:
        Records with ``layers``, ``rate``, ``way``, ``error`` (root mean square of the logits'
        error, over that of the logits) and ``of_dense``: this error over the dense model's own.
    """
    exact, units = copy.deepcopy(model).float(), PruningUnits.of(model)
    layers = model.config.num_hidden_layers
    own = distance(plain_logits(model, ids), plain_logits(exact, ids))
    yield {"layers": layers, "rate": 0.0, "way": "dense", "error": own}
    for rate, mask in masks(units, rates):
        reference = plain_logits(prune(exact, units, mask), ids)
        for way, logits in logits_by_way(model, units, mask, ids):
            error = distance(logits, reference)
            found = {"layers": layers, "rate": rate, "way": way, "error": error}
            yield found | {"of_dense": error / own}


def against_pruned(model: PreTrainedModel, rates: Sequence[float], ids: Tensor) -> Iterator[Record]:
    """Yields, for each rate and way, how far it is from the pruned model in the same format.

    Returns:
        Records with ``layers``, ``rate``, ``way``, ``distance`` (as ``error`` above, against the
        pruned model) and ``loss``, the mean over the tokens in nats.
    """
    units = PruningUnits.of(model)
    for rate, mask in masks(units, rates):
        found = dict(logits_by_way(model, units, mask, ids))
        for way, logits in found.items():
            yield {
                "layers": model.config.num_hidden_layers,
                "rate": rate,
                "way": way,
                "distance": distance(logits, found["pruned"]),
                "loss": mean_loss(logits, ids),
            }


def masks(units: PruningUnits, rates: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
    """Yields each rate with a random mask (n,) of it."""
    scores = torch.rand(units.n, generator=torch.Generator().manual_seed(0))  # (n,)
    for rate in rates:
        yield rate, Budget(units, rate).round(scores)


def logits_by_way(
    model: PreTrainedModel, units: PruningUnits, mask: Tensor, ids: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Yields the logits (B, T, vocabulary) of a mask by every way, the pruned model's last."""
    executors = ways(model.device)
    if os.environ.get("TRITON_INTERPRET") == "1" and find_spec("triton"):
        executors["kernels"] = ("sliced", "triton")
    for way, (executor, kernels) in executors.items():
        yield way, MaskedLM(model, units, executor, kernels).logits(mask[None], ids)[0]
    yield "pruned", plain_logits(prune(model, units, mask), ids)


@torch.no_grad()
def plain_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Computes the logits of Hugging Face's model, (B, T, vocabulary)."""
    return model(input_ids=ids, use_cache=False).logits


def distance(logits: Tensor, reference: Tensor) -> float:
    """Computes the root mean square of a difference, over that of the reference."""
    wide = reference.double()
    return float((logits.double() - wide).norm() / wide.norm())


def mean_loss(logits: Tensor, ids: Tensor) -> float:
    """Computes the mean next-token cross-entropy of logits (B, T, vocabulary), in nats."""
    return float(F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()))


if __name__ == "__main__":
    run_command(main)
