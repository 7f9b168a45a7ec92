"""Held-out windows of two domains: they end a training, and choose which of its states is kept.

Training on a narrow text does harm elsewhere, so the windows are of two texts: some that are held
out of the training text, and some of another text. Evaluation texts are not among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.data.calibration import VALIDATION_WINDOWS
from pgprune.finetuning.batches import open_text
from pgprune.finetuning.processes import shared
from pgprune.losses.windows import model_losses, window_losses
from pgprune.utils.options import Config, option
from pgprune.utils.progress import note


@dataclass(frozen=True)
class ValidationConfig(Config):
    """Validation: windows that are held out, which end the training early."""

    validation: str | None = option(
        None,
        "text of another domain, as --calibration; asks plain finetuning to validate",
        unset="with --distill or --local builtin:prose, or builtin:code after prose",
        metavar="TEXT",
    )
    validation_windows: int = option(
        VALIDATION_WINDOWS,
        "held-out windows of each of the two texts",
        minimum=1,
        maximum=VALIDATION_WINDOWS,
    )
    validate_every: int | None = option(
        None, "updates between two validations", minimum=1, unset="a sixteenth of all"
    )
    # The last steps, which are small, often make up for what large ones did.
    patience: int = option(
        10, "validations without a lower mean loss that end the training", minimum=1
    )


def other_text(source: str) -> str:
    """Returns the built-in text of another domain than a text."""
    return "builtin:code" if source.startswith("builtin:prose") else "builtin:prose"


def second_domain(
    source: str, tokenizer: PreTrainedTokenizerBase, length: int, windows: int
) -> Tensor:
    """Returns windows (V, T) of a text, those that a training on this text would never see.

    Raises:
        PruningError: the text cannot be read, or is too short.
    """
    return open_text(source, tokenizer, length, 1, 0)[1][:windows]


class Keeper:
    """Keeps the weights with the lowest mean loss over the domains, and knows when to stop.

    Args:
        model: that is trained.
        parameters: its trained weights by name; their present values are the first to be kept.
        sets: held-out windows (V, T) by the name of their text; none keeps the last weights.
        every: updates between two validations.
        patience: validations without a lower loss after which nothing better is expected.

    Attributes:
        history: of each validation, the update and the losses by text, in nats.
        best: number of the update whose weights are kept.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parameters: Mapping[str, nn.Parameter],
        sets: Mapping[str, Tensor],
        every: int,
        patience: int,
    ) -> None:
        self._model, self._parameters, self._sets = model, parameters, sets
        self._every, self._patience = every, patience
        self._kept: dict[str, Tensor] = {}
        self.history: list[dict[str, Any]] = []
        self.best = 0

    @property
    def stop(self) -> bool:
        """Whether the patience is over."""
        later = [each for each in self.history if each["step"] > self.best]
        return bool(self._sets) and len(later) >= self._patience

    def look(self, step: int, last: bool = False) -> None:
        """Validates the weights after an update, if it is the turn of this one, or the last one."""
        if not self._sets or not (last or step % self._every == 0):
            return
        if self.history and self.history[-1]["step"] == step:
            return
        losses = held_out_losses(self._model, self._sets)
        lowest = min(map(_mean, self.history), default=None)
        self.history.append({"step": step, "losses": losses})
        if lowest is None or _mean(self.history[-1]) < lowest:
            self.best = step
            self._kept = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def put_back(self, step: int) -> None:
        """Gives the model the kept weights after its last update, and says where it does harm."""
        if not self._sets or self.best == step:
            return
        for name, kept in self._kept.items():
            self._parameters[name].copy_(kept)
        if self.best == 0:
            note("every state of the training is worse on held-out windows, so none is kept")
        else:
            note(f"the weights of update {self.best:,} are kept, the best on held-out windows")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all that has changed since the start: tensors, and what JSON can hold."""
        tensors = {f"best.{name}": kept for name, kept in self._kept.items()}
        return tensors, {"history": self.history, "best": self.best}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Resumes from a ``state``."""
        self.history, self.best = values["history"], values["best"]
        device = next(iter(self._parameters.values())).device
        for name, kept in tensors.items():
            if name.startswith("best."):
                self._kept[name.removeprefix("best.")] = kept.to(device)


def held_out_losses(model: PreTrainedModel, sets: Mapping[str, Tensor]) -> dict[str, float]:
    """Computes the mean loss of each set of windows (V, T), in nats."""
    losses = partial(window_losses, partial(model_losses, model), label="validation")
    compute = shared(losses)
    return {name: float(compute(windows).mean()) for name, windows in sets.items()}


def _mean(look: Mapping[str, Any]) -> float:
    losses: Mapping[str, float] = look["losses"]
    return sum(losses.values()) / len(losses)
