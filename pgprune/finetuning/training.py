"""The training loop: batches, AdamW, its step size, and a state that resumes bit for bit.

The loop is ours, because its whole state then is (weights, AdamW's moments, step). The model stays
in evaluation mode: the only dropout is that of adapters.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.finetuning.batches import Batches
from pgprune.finetuning.objectives import Objective
from pgprune.finetuning.processes import own, sum_gradients, summed
from pgprune.models.families import decoder_layers
from pgprune.models.family import Family
from pgprune.utils.memory import within_memory
from pgprune.utils.options import Config, option
from pgprune.utils.process_ids import rank


@dataclass(frozen=True)
class TrainingConfig(Config):
    """Training: which weights, and the steps."""

    train: str | None = option(
        None,
        "what is trained: low-rank adapters, the weights of the layers, or all",
        choices=["lora", "layers", "all"],
        unset="lora; with --distill layers",
    )
    learning_rate: float | None = option(
        None,
        "AdamW's highest step size",
        above=0,
        maximum=10,
        unset="0.001; with --distill by the width of the model",
    )
    schedule: str = option(
        "cosine",
        "shape of the fall of the step size to 0 after the warm-up",
        choices=["cosine", "linear"],
    )
    warmup: float = option(
        0.05, "share of the steps in which the step size rises from 0", minimum=0, below=1
    )
    epochs: int = option(1, "passes over the data", minimum=1)
    batch_size: int = option(16, "windows per update", minimum=1)
    micro_batch_size: int = option(
        4, "windows in memory at once; lower saves memory, changes nothing else", minimum=1
    )
    max_gradient: float = option(1.0, "norm to which gradients are clipped", above=0)
    precision: str = option(
        "auto",
        "bfloat16 (autocast) or full, as the weights; auto: bfloat16 on CUDA",
        choices=["auto", "bfloat16", "full"],
    )
    gradient_checkpointing: bool = option(
        False, "compute layers again in the backward pass, which saves memory"
    )


class Trainable(Protocol):
    """The part of a model that is trained.

    Attributes:
        model: a causal LM in evaluation mode, of which only these weights have gradients.
        parameters: the weights by name.
    """

    model: PreTrainedModel
    parameters: dict[str, nn.Parameter]

    def merge(self) -> PreTrainedModel:
        """Returns the model as it was, without gradients, but for the values of its weights."""


def step_size(config: TrainingConfig, highest: float, step: int, total: int) -> float:
    """Computes the step size of an update, after ``step`` of ``total`` updates."""
    # A linear warm-up, then half a cosine (Loshchilov & Hutter 2017) or a line down to 0.
    rising = round(config.warmup * total)
    if step < rising:
        factor = (step + 1) / (rising + 1)
    else:
        done = (step - rising) / (total - rising)
        factor = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return highest * factor


class Trainer:
    """Trains a part of a model; ``advance`` does one update.

    Args:
        part: what is trained.
        batches: what it is trained on.
        objective: what it is trained for.
        config: how.
        highest: step size after the warm-up.
        seed: of the dropout.

    Attributes:
        step: updates done.
        total: updates to do.
        losses: mean loss of each update's windows, in nats.
        tokens: of the windows of all updates.
    """

    def __init__(
        self,
        part: Trainable,
        batches: Batches,
        objective: Objective,
        config: TrainingConfig,
        highest: float,
        seed: int,
    ) -> None:
        self.part, self._batches, self._objective = part, batches, objective
        self._config, self._highest, self._seed = config, highest, seed
        self._device: torch.device = device_of(part.model)
        # No weight decay: it would pull adapters to zero, back to the model before.
        self._optimizer = torch.optim.AdamW(part.parameters.values(), highest, weight_decay=0.0)
        self.total = batches.total
        self.step = 0
        self.tokens = 0
        self.losses: list[float] = []

    @property
    def trained_parameters(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.part.parameters.values())

    def advance(self) -> float:
        """Does one update; returns the mean loss of its windows before it, in nats.

        Raises:
            PruningError: the loss is not finite, or the memory does not suffice.
        """
        batch, size = self._batches.at(self.step), self._config.micro_batch_size
        count = int(batch[1][:, 1:].sum())
        ids, trained = (own(each).to(self._device) for each in batch)
        backward = partial(self._objective.backward, self.part.model)
        self._optimizer.zero_grad()
        # The mean is over the trained tokens of the whole batch, however it is split.
        with (
            seeded(self._seed, self.step + 1, self._device, rank()),
            within_memory("choose a smaller --micro-batch-size, or --gradient-checkpointing"),
        ):
            parts = zip(ids.split(size), trained.split(size), strict=True) if len(ids) else ()
            share = sum(backward(*part, count) for part in parts)
            sum_gradients(self.part.parameters.values())
        loss = float(summed(torch.tensor(share, dtype=torch.float64)))
        if not math.isfinite(loss):
            raise PruningError(
                f"the loss of step {self.step + 1} is {loss}; choose a learning_rate below "
                f"{self._highest:g}, or dtype float32"
            )
        # A rare batch with a large gradient would undo many updates.
        nn.utils.clip_grad_norm_(self.part.parameters.values(), self._config.max_gradient)
        for group in self._optimizer.param_groups:
            group["lr"] = step_size(self._config, self._highest, self.step, self.total)
        self._optimizer.step()
        self.step += 1
        self.tokens += batch[0].numel()
        self.losses.append(loss)
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all that has changed since the start: tensors, and what JSON can hold."""
        tensors: dict[str, Tensor] = dict(self.part.parameters)
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return tensors, {"step": self.step, "losses": self.losses, "tokens": self.tokens}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Resumes from a ``state`` of the same model, windows, config and seed."""
        # AdamW keeps its moments by the number of the parameter.
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name in self.part.parameters:
                self.part.parameters[name].copy_(value)
            elif name.startswith("optimizer."):
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
        self.step, self.losses, self.tokens = values["step"], values["losses"], values["tokens"]


@contextmanager
def recomputing(model: PreTrainedModel, family: Family) -> Iterator[None]:
    """Lets layers keep only their inputs for the backward pass (Chen et al. 2016)."""
    layers: Any = decoder_layers(model, family)
    for layer in layers:
        # transformers' own way needs training mode, in which some models have dropout.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def device_of(model: PreTrainedModel) -> torch.device:
    """Returns the device where token ids enter a model."""
    embeddings: Any = model.get_input_embeddings()
    device: torch.device = embeddings.weight.device
    return device


@contextmanager
def seeded(seed: int, step: int, device: torch.device, process: int = 0) -> Iterator[None]:
    """Makes everything random within a step a function of (seed, step, process)."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        # A resumed training draws the dropout that an uninterrupted one draws.
        torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1)[0]))
        yield
