"""Measures in turn how fast models are and how much memory they take.

The work is one call for all tokens of the prompts, which computes the logits of the last token only
(prefill), and then one call for each new token with the cache of keys and values (decoding). The
tokens are random, the same for every model: what they are does not change how long they take.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.evaluation.timing import Clock, measure_in_turn
from pgprune.losses.tokens import next_token_logits
from pgprune.models.load import DTYPES, ModelConfig
from pgprune.runs.any_model import check_source, load_any
from pgprune.surgery.random_models import ShapeConfig, random_models
from pgprune.utils.devices import choose_device
from pgprune.utils.files import check_new
from pgprune.utils.memory import within_memory
from pgprune.utils.options import Config, option, same_option
from pgprune.utils.progress import note, track

Models = Mapping[str, PreTrainedModel]
"""Models by the name that tables show; the first one is the reference."""


@dataclass(frozen=True)
class LatencyConfig(Config):
    """Measurement: what is timed, how often, and where."""

    batch_sizes: tuple[int, ...] = option((1, 8), "prompts per batch", minimum=1)
    sequence_lengths: tuple[int, ...] = option((128, 384), "tokens of a prompt", minimum=1)
    new_tokens: int = option(32, "tokens decoded after each prompt", minimum=1)
    repeats: int = option(7, "rounds over all models", minimum=1)
    threads: int | None = option(None, "CPU threads", minimum=1, unset="torch's choice")
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = option(
        "auto",
        "number format of the weights; auto is float32 on the CPU",
        choices=["auto", *DTYPES],
    )
    attn_implementation: str = same_option(ModelConfig, "attn_implementation", "sdpa")
    output: str | None = option(
        None,
        "new directory for benchmark.json, its table and its plot",
        unset="none, the table is printed",
        metavar="DIR",
    )
    quiet: bool = option(False, "show no progress, only the results")

    @property
    def settings(self) -> list[tuple[int, int]]:
        """Every batch size with every sequence length."""
        return list(product(self.batch_sizes, self.sequence_lengths))


@dataclass(frozen=True)
class Measurement:
    """The times and the memory of one model for one batch.

    Attributes:
        model: its name.
        batch_size: prompts.
        sequence_length: tokens of each.
        prefill: seconds for all tokens of the prompts, of each round.
        decode: seconds for a new token of every prompt, of each round.
        working_bytes: the most memory in use beyond the weights; None where it is not known.
    """

    model: str
    batch_size: int
    sequence_length: int
    prefill: list[float]
    decode: list[float]
    working_bytes: int | None


def measure(models: Models, config: LatencyConfig) -> list[Measurement]:
    """Measures all models in all settings, which takes a while.

    Raises:
        PruningError: a prompt and its new tokens are longer than a model's context, or there is
            not enough memory.
    """
    # A context that is too short would show only after minutes of measuring.
    longest = max(length for _, length in config.settings)
    for name, model in models.items():
        limit = getattr(model.config, "max_position_embeddings", longest + config.new_tokens)
        if longest + config.new_tokens > limit:
            raise PruningError(
                f"{name} has a context of {limit} tokens, less than the {longest} + "
                f"{config.new_tokens} to measure; choose smaller --sequence-lengths or --new-tokens"
            )
    measurements: list[Measurement] = []
    with _threads(config.threads):
        for batch, length in track(config.settings, "measuring", unit="settings"):
            note(
                f"measuring {batch} x {length} tokens, then {batch} x {config.new_tokens} one by "
                "one"
            )
            measurements += _measure(models, batch, length, config)
    return measurements


def load_models(sources: list[str], shapes: ShapeConfig, config: LatencyConfig) -> Models:
    """Loads what is to be compared, or makes it up.

    Args:
        sources: models and runs as ``load_any`` takes them; or none.
        shapes: which random models; or none.
        config: device and number format, and ``output``, which is checked before any loading.

    Raises:
        PruningError: something cannot be loaded or done.
    """
    if config.output is not None:
        check_new(Path(config.output))
    if shapes.shape is None:
        return _load(sources, config)
    if sources:
        raise PruningError("give models or --shape, not both: their speeds do not compare")
    device = choose_device(config.device)
    usual = torch.float32 if device.type == "cpu" else torch.bfloat16
    dtype = DTYPES.get(config.dtype, usual)
    return random_models(
        *(shapes.shape, shapes.prune_rates, shapes.round_to),
        *(device, dtype, config.attn_implementation),
    )


def _load(sources: list[str], config: LatencyConfig) -> Models:
    """Loads models by name; where two have the same name, by what the user typed."""
    if not sources:
        raise PruningError("there is nothing to measure; give models or runs, or --shape")
    for source in sources:
        check_source(source, device=config.device, dtype=config.dtype)
    models: dict[str, PreTrainedModel] = {}
    for source in sources:
        loaded = load_any(
            source,
            device=config.device,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
        )
        name = loaded.name if loaded.name not in models else source
        while name in models:  # the same model again shows how much the measurement scatters
            name += " again"
        models[name] = loaded.model
    return models


def _measure(
    models: Models, batch: int, length: int, config: LatencyConfig
) -> Iterator[Measurement]:
    """Measures all models in one setting."""
    ids = _random_ids(models, batch, length + config.new_tokens)
    clock = Clock(next(iter(models.values())).device)
    works = {name: partial(generate, model, ids, length) for name, model in models.items()}
    with within_memory("choose smaller --batch-sizes or --sequence-lengths"):
        rounds, memory = measure_in_turn(works, config.repeats, clock)
    for name in models:
        # Each round gave a pair; the report compares phase by phase.
        prefill, decode = zip(*rounds[name], strict=True)
        yield Measurement(name, batch, length, list(prefill), list(decode), memory[name])


@torch.inference_mode()
def generate(model: PreTrainedModel, ids: Tensor, length: int, clock: Clock) -> tuple[float, float]:
    """Times reading ``length`` tokens of ids (B, T) at once, and each other token: seconds."""
    start = clock()
    ids = ids.to(model.device)
    _, cache = next_token_logits(model, ids[:, :length])
    filled = clock()
    # One call a token: the cache holds keys and values of all before it.
    for token in ids[:, length:].split(1, dim=1):  # (B, 1)
        _, cache = next_token_logits(model, token, cache)
    return filled - start, (clock() - filled) / (ids.shape[1] - length)


def _random_ids(models: Models, batch: int, length: int) -> Tensor:
    """Draws tokens that all models know, (B, T) int64."""
    # Every model must know the tokens, which are the same for all.
    vocabulary = min(model.config.vocab_size for model in models.values())
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, length), generator=generator)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Lets torch use that many CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
