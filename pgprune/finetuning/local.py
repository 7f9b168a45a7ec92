"""Local distillation: each attention and each MLP of the pruned model learns the dense states.

A block gets the states of the pruned model, as it is up to there, and learns all of its weights
such that the states after it are those of the dense model after the same block. So it also makes up
for the error of the blocks before it. No pass goes back through more than one block, and no logits
are needed. A block's new weights are kept only where its error on held-out windows falls.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune.finetuning.blocks import BLOCKS, Blocks
from pgprune.finetuning.distillation import relative_errors
from pgprune.finetuning.objectives import Autocast
from pgprune.finetuning.processes import own, sum_gradients, summed
from pgprune.finetuning.training import device_of
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.utils.memory import within_memory
from pgprune.utils.options import Config, option
from pgprune.utils.progress import phase


@dataclass(frozen=True)
class LocalConfig(Config):
    """Local distillation: each attention and MLP on its own."""

    local: bool = option(False, "fit each attention and MLP to the dense states, by itself")
    local_windows: int = option(128, "windows of the training text that blocks see", minimum=1)
    local_passes: int = option(4, "passes over them for each block", minimum=1)
    local_batch_size: int = option(8, "windows per update of a block", minimum=1)
    local_learning_rate: float | None = option(
        None, "AdamW's highest step size for a block", above=0, maximum=10, unset="by the width"
    )


@dataclass(frozen=True)
class BlockError:
    """What local distillation did to a block.

    Attributes:
        layer: index in the pruned model.
        block: ``attention`` or ``mlp``.
        before: relative squared error of the states after it, on held-out windows.
        after: the same with the weights that are kept.
    """

    layer: int
    block: str
    before: float
    after: float


class Text(NamedTuple):
    """Token ids and states of windows, of which the first are trained on.

    Attributes:
        ids: (N, T) int64, on the device.
        trained: windows to train on.
        domains: numbers of the held-out windows of each text, which follow.
    """

    ids: Tensor
    trained: int
    domains: tuple[int, ...]


class LocalDistillation:
    """Fits the blocks of a pruned model one after another.

    Args:
        model: the pruned model; ``run`` changes its weights. One of 16 bits is in float32 until
            then.
        teacher: the dense model, on the same device.
        layers: index of the dense layer that each layer of the model was.
        windows: to train on, (N, T).
        sets: held-out windows (V, T) by the name of their text.
        config: how.
        highest: step size of an update after none.
        seed: of the order of the windows.
        autocast: number format of the products.

    Attributes:
        errors: of each block that was trained.
        done: layers done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: PreTrainedModel,
        layers: Sequence[int],
        windows: Tensor,
        sets: Mapping[str, Tensor],
        *,
        config: LocalConfig,
        highest: float,
        seed: int,
        autocast: Autocast,
    ) -> None:
        self._model, self._teacher, self._indices = model, teacher, list(layers)
        self._config, self._highest, self._seed = config, highest, seed
        self._dtype = model.dtype
        if model.dtype.itemsize < 4:
            model.float()  # most steps are below the last bit of 16
        self._blocks = Blocks(model, autocast)
        ids = torch.cat([windows, *sets.values()]).to(device_of(model))
        self._text = Text(ids, len(windows), tuple(map(len, sets.values())))
        self.errors: list[BlockError] = []
        self.done = 0

    @property
    def windows(self) -> int:
        """Windows that blocks are trained on."""
        return self._text.trained

    @property
    def tokens(self) -> int:
        """Tokens of these windows, counted in each pass."""
        return self.windows * self._text.ids.shape[1] * self._config.local_passes

    def run(self, interrupted: Callable[[], bool], save: Callable[[], None]) -> None:
        """Fits all blocks, or those until it is interrupted.

        Args:
            interrupted: whether to stop after the layer at hand.
            save: called after each layer.
        """
        with (
            phase("local distillation", len(self._blocks.layers), "layers") as work,
            within_memory("choose fewer --local-windows, or a smaller --sequence-length"),
        ):
            size, dense = self._config.local_batch_size, enumerate(self._dense())
            states = torch.cat(list(map(self._blocks.embedded, self._text.ids.split(size))))
            # Where all are done, nothing has to run.
            for index in range(work.total or 0) if self.done != work.total else ():
                _, right = next(each for each in dense if each[0] == self._indices[index])
                states = self._layer(index, states, right)
                work.reach(index + 1)
                if index < self.done:
                    continue  # a resumed command only runs it
                self.done = index + 1
                save()
                if interrupted():
                    break
        self._model.to(self._dtype)  # type: ignore[arg-type]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all that has changed since the start: tensors, and what JSON can hold."""
        tensors: dict[str, Tensor] = {
            f"{index}.{name}": parameter
            for index in range(self.done)
            for name, parameter in self._blocks.layers[index].named_parameters()
        }
        return tensors, {"done": self.done, "errors": list(map(asdict, self.errors))}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Resumes from a ``state``."""
        for key, value in tensors.items():
            index, _, name = key.partition(".")
            self._blocks.layers[int(index)].get_parameter(name).copy_(value)
        self.done = values["done"]
        self.errors = [BlockError(**each) for each in values["errors"]]

    def _layer(self, index: int, states: Tensor, right: dict[str, Tensor]) -> Tensor:
        """Fits the blocks of a layer in turn; returns the states after it, (N, T, D)."""
        inputs = states
        for block in BLOCKS:
            # Parallel blocks both read the states before the layer.
            read = inputs if self._blocks.parallel else states
            if index >= self.done:
                self._fit(index, block, read, states, right[block])
            with torch.no_grad():
                rows = range(len(states))
                states = torch.cat(
                    [
                        self._after(index, block, some, read, states)
                        for some in _batches(rows, self._config.local_batch_size)
                    ]
                )
        return states

    def _fit(self, index: int, block: str, read: Tensor, states: Tensor, right: Tensor) -> None:
        """Trains the weights of a block, and keeps those with the least held-out error."""
        parameters = self._blocks.parameters(index, block)
        if not parameters:
            return
        config, text = self._config, self._text
        best = before = self._held_out(index, block, read, states, right)
        kept = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.AdamW(parameters, self._highest, weight_decay=0.0)
        per_pass = math.ceil(text.trained / config.local_batch_size)
        for parameter in parameters:
            parameter.requires_grad_()
        for turn in range(config.local_passes):
            place = [self._seed, index, *block.encode(), turn]
            order = np.random.default_rng(place).permutation(text.trained).tolist()
            for step, some in enumerate(_batches(order, config.local_batch_size)):
                done = (turn * per_pass + step) / (config.local_passes * per_pass)
                optimizer.param_groups[0]["lr"] = self._highest * (1 + math.cos(math.pi * done)) / 2
                optimizer.zero_grad()
                mine = own(torch.tensor(some)).tolist()
                if mine:
                    found = self._after(index, block, mine, read, states)
                    share = relative_errors(found, right[mine]).sum()
                    (share / (len(some) * right.shape[1])).backward()
                sum_gradients(parameters)
                optimizer.step()
            error = self._held_out(index, block, read, states, right)
            if error < best:
                best, kept = error, [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value).requires_grad_(False)
                parameter.grad = None
        self.errors.append(BlockError(index, block, before, best))

    @torch.no_grad()
    def _held_out(
        self, index: int, block: str, read: Tensor, states: Tensor, right: Tensor
    ) -> float:
        """Computes a block's error: the mean over the texts of that over their tokens."""
        errors, start = [], self._text.trained
        for count in self._text.domains:
            mine = own(torch.arange(start, start + count)).tolist()
            total = torch.zeros((), dtype=torch.float64)
            for some in _batches(mine, self._config.local_batch_size):
                after = self._after(index, block, some, read, states)
                total += relative_errors(after, right[some]).double().sum().cpu()
            errors.append(float(summed(total)) / (count * right.shape[1]))
            start += count
        return sum(errors) / len(errors)

    def _after(
        self, index: int, block: str, some: list[int], read: Tensor, states: Tensor
    ) -> Tensor:
        """Computes the states of some windows after a block, (b, T, D)."""
        ids = self._text.ids[some]
        return states[some] + self._blocks.added(index, block, ids, read[some])

    def _dense(self) -> Iterator[dict[str, Tensor]]:
        """Yields the dense states (N, T, D) after each block of a layer, layer by layer."""
        lm = MaskedLM(self._teacher, PruningUnits.of(self._teacher, "layers"))
        states = lm.blocks(self._text.ids)
        for between in states:
            yield dict(zip(BLOCKS, map(torch.cat, (between, next(states))), strict=True))


def _batches(rows: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(rows[start : start + size]) for start in range(0, len(rows), size))
