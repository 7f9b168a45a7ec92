"""Trains low-rank adapters (LoRA) of all projections of a frozen model, and merges them.

The adapters are those of peft (Hu et al. 2022, arXiv 2106.09685); the loop is ours, because its
whole state then is (adapters, AdamW's moments, step), and an interrupted training resumes bit for
bit. The base model stays in evaluation mode: the only dropout is the adapters'.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pgprune.errors import PruningError
from pgprune.finetuning.instructions import TrainingWindows
from pgprune.losses.tokens import chunk_tokens, token_losses
from pgprune.models.families import decoder_layers
from pgprune.models.family import Family
from pgprune.models.rows import FAMILIES
from pgprune.utils.memory import within_memory
from pgprune.utils.options import Config, option


@dataclass(frozen=True)
class LoraConfig(Config):
    """LoRA: what is learned, and how."""

    rank: int = option(16, "rank of the adapters", minimum=1)
    alpha: float = option(10.0, "scale of the adapters: they count alpha / rank times", above=0)
    dropout: float = option(0.0, "dropout of the adapters' inputs", minimum=0, below=1)
    learning_rate: float = option(1e-3, "AdamW's highest step size", above=0, maximum=10)
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


def check_peft() -> None:
    """Makes sure that peft is installed.

    Raises:
        PruningError: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise PruningError(
            "finetuning needs the package peft; run `pip install 'pgprune[finetune]'`"
        ) from None


def listed_family(config: PretrainedConfig) -> Family:
    """Returns the family of a model, dense or pruned.

    Raises:
        PruningError: it is not listed.
    """
    kind = f"_{config.model_type}"  # as in _llama, _pgprune_llama
    families = [family for name, family in FAMILIES.items() if kind.endswith(f"_{name}")]
    if not families:
        raise PruningError(
            f"a model of the family {config.model_type!r}, which pgprune does not list, "
            "cannot be finetuned here; export the run and finetune it with peft"
        )
    return families[0]


def projections(model: PreTrainedModel) -> list[str]:
    """Lists the linear projections in the blocks of a model, pruned or not, as dotted paths.

    Where pruning left nothing of a projection but its bias, it is not in the list.

    Raises:
        PruningError: the model has none, or its family is not listed.
    """
    family = listed_family(model.config)
    paths = (family.query, family.key, family.value, family.output, *family.expand, family.down)
    paths_of_linears = [
        f"{family.layers}.{index}.{path}"
        for index, layer in enumerate(decoder_layers(model, family))
        for path, module in layer.named_modules()
        if path.removesuffix(".linear") in paths and isinstance(module, nn.Linear)
    ]
    if not paths_of_linears:
        raise PruningError(
            "the model has no projections left that could be finetuned; prune less of it"
        )
    return paths_of_linears


def step_size(config: LoraConfig, step: int, total: int) -> float:
    """Computes the step size of an update, after ``step`` of ``total`` updates."""
    # A linear warm-up, then half a cosine (Loshchilov & Hutter 2017) or a line down to 0.
    rising = round(config.warmup * total)
    if step < rising:
        factor = (step + 1) / (rising + 1)
    else:
        done = (step - rising) / (total - rising)
        factor = 1 - done if config.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return config.learning_rate * factor


class LoraTrainer:
    """Adapters in a model, and their training; ``advance`` does one update.

    Args:
        model: a causal LM without gradients; ``merge`` gives it back.
        windows: what to learn.
        config: how.
        seed: of the adapters' start, the order of the windows and the dropout.

    Attributes:
        step: updates done.
        total: updates to do.
        losses: mean loss of each update's windows, in nats.

    Raises:
        PruningError: peft is not installed, or the model is in float16 or has no projections.
    """

    def __init__(
        self, model: PreTrainedModel, windows: TrainingWindows, config: LoraConfig, seed: int
    ) -> None:
        check_peft()
        import peft

        # Gradients in float16 need loss scaling, which this loop does not have.
        if model.dtype == torch.float16:
            raise PruningError(
                "float16 overflows in finetuning; choose dtype bfloat16 or float32 for the model"
            )
        self._model, self._windows, self._config, self._seed = model, windows, config, seed
        self._device: torch.device = model.get_input_embeddings().weight.device  # type: ignore
        alpha: Any = config.alpha  # fractions work as well
        adapters = peft.LoraConfig(
            r=config.rank,
            lora_alpha=alpha,
            lora_dropout=config.dropout,
            target_modules=projections(model),
        )
        with self._random(0), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what transformers says to peft
            self._adapted: Any = peft.get_peft_model(model, adapters)
        model.eval()
        # The base model has no dropout in evaluation mode; the adapters keep theirs.
        for name, module in model.named_modules():
            if "lora_dropout" in name:
                module.train()
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        # No weight decay: it would pull the adapters to zero, back to the model before.
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), config.learning_rate, weight_decay=0.0
        )
        self._per_epoch = math.ceil(len(windows.ids) / config.batch_size)
        self.total = config.epochs * self._per_epoch
        self.step = 0
        self.losses: list[float] = []

    @property
    def trained_parameters(self) -> int:
        """Numbers in the adapters."""
        return sum(parameter.numel() for parameter in self._parameters.values())

    def advance(self) -> float:
        """Does one update; returns the mean loss of its windows before it, in nats.

        Raises:
            PruningError: the loss is not finite, or the memory does not suffice.
        """
        ids, trained = self._batch()
        size, count = self._config.micro_batch_size, int(trained[:, 1:].sum())
        self._optimizer.zero_grad()
        # The mean is over the trained tokens of the whole batch, however it is split.
        with self._random(self.step + 1), within_memory("choose a smaller micro_batch_size"):
            parts = zip(ids.split(size), trained.split(size), strict=True)
            loss = sum(self._backward(*part, count) for part in parts)
        if not math.isfinite(loss):
            raise PruningError(
                f"the loss of step {self.step + 1} is {loss}; choose a learning_rate below "
                f"{self._config.learning_rate:g}, or dtype float32"
            )
        # A rare batch with a large gradient would undo many updates.
        nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_gradient)
        for group in self._optimizer.param_groups:
            group["lr"] = step_size(self._config, self.step, self.total)
        self._optimizer.step()
        self.step += 1
        self.losses.append(loss)
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all that has changed since the start: tensors, and what JSON can hold."""
        tensors: dict[str, Tensor] = dict(self._parameters)
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
        return tensors, {"step": self.step, "losses": self.losses}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Resumes from a ``state`` of the same model, windows, config and seed."""
        # AdamW keeps its moments by the number of the parameter.
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name in self._parameters:
                self._parameters[name].copy_(value)
            else:
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = value
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": moments})
        self.step, self.losses = values["step"], values["losses"]

    def merge(self) -> PreTrainedModel:
        """Adds the adapters to the weights and removes them.

        Returns:
            The model, in evaluation mode and without gradients, as it was but for the values of
            the projections' weights.
        """
        return self._adapted.merge_and_unload(safe_merge=True).eval().requires_grad_(False)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Returns the windows of the next update: ids and what is trained of them, (B, T) each."""
        epoch, index = divmod(self.step, self._per_epoch)
        # The order is a function of (seed, epoch), so a resumed training needs no generator state.
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self._windows.ids))
        rows = torch.from_numpy(order[index * self._config.batch_size :][: self._config.batch_size])
        ids, trained = self._windows.ids[rows], self._windows.trained[rows]
        return ids.to(self._device), trained.to(self._device)

    def _backward(self, ids: Tensor, trained: Tensor, count: int) -> float:
        """Adds the gradient of these windows' share of the mean loss over ``count`` tokens."""
        # Position t predicts token t + 1, so the first token is never a target.
        wanted = trained[:, 1:]  # (b, T-1)
        with self._autocast():
            hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        states, targets = hidden[:, :-1][wanted], ids[:, 1:][wanted]  # (N, D), (N,)
        # The head's gradients end here, so that no more than one chunk of logits is ever kept.
        leaf, total = states.detach().requires_grad_(), 0.0
        head = self._model.get_output_embeddings().weight
        chunk = chunk_tokens(head.shape[0])
        for part, target in zip(leaf.split(chunk), targets.split(chunk), strict=True):
            with self._autocast():
                loss = token_losses(self._model, part, target).sum() / count
            loss.backward()
            total += float(loss.detach())
        # One pass through the layers, with the gradient that all chunks have added up in the leaf.
        states.backward(leaf.grad)
        return total

    def _autocast(self) -> AbstractContextManager[Any]:
        wanted, kind = self._config.precision, self._device.type
        if wanted == "full" or (wanted == "auto" and kind != "cuda"):
            return nullcontext()
        return torch.autocast(kind, torch.bfloat16)

    @contextmanager
    def _random(self, step: int) -> Iterator[None]:
        """Makes everything random within a step a function of (seed, step)."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            # A resumed training draws the dropout that an uninterrupted one draws.
            torch.manual_seed(int(np.random.SeedSequence([self._seed, step]).generate_state(1)[0]))
            yield
