"""The pieces of work that the speed benchmark times."""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from pgprune.agents.estimators import advantages, gradient, moving_average, sample
from pgprune.budget.budget import Budget
from pgprune.evaluation.timing import Clock, Work, measure_in_turn, weight_bytes
from pgprune.masking.kept_weights import aligned
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.families import decoder_layers, family_of, linear_at
from pgprune.models.load import DTYPES, ModelConfig, load_model
from pgprune.surgery.random_models import SHAPES, random_models
from pgprune.utils.memory import within_memory

_AGENT_MASKS = 2  # the paper's N_s
_THIN = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 32,
    "num_attention_heads": 8,
}
"""A model in which there is so little to compute that its time is the host's."""


def load(name: str, device: torch.device, dtype: str) -> PreTrainedModel:
    """Loads the built-in model, or makes random weights of a shape.

    Raises:
        PruningError: it does not fit into the device's memory.
    """
    usual = torch.float32 if device.type == "cpu" else torch.bfloat16
    if name == "builtin":
        names = {value: key for key, value in DTYPES.items()}
        chosen = names[usual] if dtype == "auto" else dtype
        return load_model(ModelConfig("builtin", device=str(device), dtype=chosen))[0]
    with within_memory(f"choose a smaller shape than {name}"):
        return random_models(name, [], [1], device, DTYPES.get(dtype, usual))[name]


def measure(
    model: PreTrainedModel,
    rates: list[float],
    batch: tuple[int, int],
    repeats: int,
    clock: Clock,
    executors: Mapping[str, tuple[str, str]],
) -> dict[str, Any]:
    """Measures everything about one model.

    Args:
        model: dense.
        rates: of random masks over heads and channels, each kind keeping its share.
        batch: sequences and tokens of each.
        repeats: rounds.
        clock: what times are read from.
        executors: to be timed, as ``ways`` returns them.

    Returns:
        ``parameters``, ``dtype``, ``weight_bytes``, ``operations`` of the products by rate, and by
        the name of the work (``dense``, ``masked 0.5``, ``sliced 0.5``, ``products 0.5``, and
        ``kernels 0.5`` where ``ways`` has them) ``rounds``, the seconds of its parts in each round,
        and ``memory``, the most bytes that it takes beside the weights (None where that is not
        known).

    Raises:
        PruningError: a rate that leaves nothing, or too little memory.
    """
    units = PruningUnits.of(model)
    ids = torch.randint(
        model.config.vocab_size, batch, generator=torch.Generator().manual_seed(0)
    ).to(clock.device)
    works: dict[str, Work] = {"dense": partial(dense_work, model, ids)}
    models: list[MaskedLM] = []
    operations = {}
    for rate in rates:
        generator = torch.Generator().manual_seed(0)
        mask = Budget(units, rate).round(torch.rand(units.n, generator=generator))
        for way, (executor, kernels) in executors.items():
            models.append(MaskedLM(model, units, executor, kernels))
            works[f"{way} {rate:g}"] = partial(executor_work, models[-1], mask, ids)
        weights = kept_weights(model, units, mask)
        operations[f"{rate:g}"] = 2 * ids.numel() * sum(weight.numel() for weight in weights)
        works[f"products {rate:g}"] = partial(products_work, weights, ids.numel())

    def release() -> None:
        for lm in models:
            lm.release_memory()

    with within_memory("choose a smaller --batch-size"):
        rounds, memory = measure_in_turn(works, repeats, clock, release)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weight_bytes": weight_bytes(model),
        "operations": operations,
        "memory": memory,
        "rounds": rounds,
    }


def ways(device: torch.device) -> dict[str, tuple[str, str]]:
    """Returns executors and their kernels by name: ``kernels`` only on a GPU with Triton."""
    found = {"masked": ("masked", "plain"), "sliced": ("sliced", "plain")}
    if device.type == "cuda" and find_spec("triton"):
        found["kernels"] = ("sliced", "triton")
    return found


def measure_agent(repeats: int, clock: Clock, shape: str) -> dict[str, Any]:
    """Measures what REINFORCE does in a step besides evaluating masks, for units of a shape.

    Returns:
        ``units``, and ``rounds``: the seconds of sampling, estimating and projecting in each.
    """
    with torch.device("meta"):
        shadow = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]))
    budget = Budget(PruningUnits.of(shadow), 0.5)
    generator = torch.Generator(clock.device).manual_seed(0)
    scores = torch.rand(
        budget.units.n, generator=generator, device=clock.device, dtype=torch.float64
    )
    work = partial(agent_work, budget, budget.project(scores), generator)
    work(clock)
    return {"units": budget.units.n, "rounds": [work(clock) for _ in range(repeats)]}


def measure_host(repeats: int, clock: Clock) -> dict[str, Any]:
    """Measures what the host does to run a layer, by a model in which there is little to compute.

    Returns:
        ``layers``, and ``rounds``: the seconds of a plain forward pass with its loss (``dense``)
        and of a sliced evaluation (``sliced``) in each.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**_THIN)).to(clock.device).eval()
    sliced = {"sliced": ("sliced", "plain")}
    rounds = measure(model, [0.5], (1, 4), repeats, clock, sliced)["rounds"]
    return {
        "layers": _THIN["num_hidden_layers"],
        "rounds": {
            "dense": [sum(parts) for parts in rounds["dense"]],
            "sliced": [seconds for (seconds,) in rounds["sliced 0.5"]],
        },
    }


@torch.no_grad()
def dense_work(model: Any, ids: Tensor, clock: Clock) -> list[float]:
    """Computes the plain model's loss; the parts are blocks with embedding and norm, and head."""
    start = clock()
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    middle = clock()
    logits = model.get_output_embeddings()(hidden)
    float(model.loss_function(logits=logits, labels=ids, vocab_size=logits.shape[-1]))
    return [middle - start, clock() - middle]


def executor_work(lm: MaskedLM, mask: Tensor, ids: Tensor, clock: Clock) -> list[float]:
    """Evaluates one mask and reads its losses."""
    start = clock()
    lm.losses(mask[None], ids).tolist()
    return [clock() - start]


@torch.no_grad()
def products_work(weights: list[Tensor], tokens: int, clock: Clock) -> list[float]:
    """Times products of states (tokens, inputs) with each of some weights (outputs, inputs)."""
    largest = max(weight.shape[1] for weight in weights)
    states = torch.ones(tokens * largest, dtype=weights[0].dtype, device=clock.device)
    start = clock()
    for weight in weights:
        F.linear(states[: tokens * weight.shape[1]].view(tokens, -1), weight)
    return [clock() - start]


def agent_work(
    budget: Budget, probabilities: Tensor, generator: torch.Generator, clock: Clock
) -> list[float]:
    """Does what REINFORCE does in a step besides evaluating masks: sample, score, project."""
    losses = torch.tensor([3.0, 3.1], dtype=torch.float64)
    moments = [clock()]
    masks = sample(probabilities, _AGENT_MASKS, generator)
    moments.append(clock())
    advantage = advantages(losses, "moving-average", moving_average(3.0, losses, 5))
    step = gradient(masks, advantage.to(clock.device), probabilities, "preconditioned")
    moments.append(clock())
    budget.project(probabilities - 2e-3 * step)
    moments.append(clock())
    return [after - before for before, after in zip(moments[:-1], moments[1:], strict=True)]


def kept_weights(model: PreTrainedModel, units: PruningUnits, mask: Tensor) -> list[Tensor]:
    """Returns the rows that an evaluation gathers of every projection's weights, and the head's.

    They are the first rows, in place, so that nothing is copied.
    """
    family, weights = family_of(model.config), []
    for index, layer in enumerate(decoder_layers(model, family)):
        part, shape = LayerMask(mask[None], units, index, family), units.shapes[index]
        kept = part.kept("heads", "attention")
        heads = (shape.kv_heads if kept is None else len(kept)) * shape.head_dim
        queries = heads * shape.query_heads_per_group
        kept = part.kept("channels", "mlp")
        channels = shape.channels if kept is None else aligned(len(kept), model.dtype)
        rows = {family.key: heads, family.value: heads, family.query: queries}
        rows |= dict.fromkeys(family.expand, channels)
        columns = {family.output: queries, family.down: channels}
        weights += [linear_at(layer, path).weight[:count] for path, count in rows.items()]
        weights += [linear_at(layer, path).weight[:, :count] for path, count in columns.items()]
    return [*weights, model.get_output_embeddings().weight]
