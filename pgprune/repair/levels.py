"""Levels: for each layer and kind, what is kept at a few counts of units, with refitted weights.

The units of a projection's inputs have one order of removal, so a level is a number of kept units.
Its weights are those that are best for them on the dense model's inputs, where the error of a token
counts relative to its hidden state. They depend on no other layer, so they are solved once, and any
mixture of levels is an ordinary forward pass of weights that can be shipped as they are (after Li
et al. 2025, Tyr-the-Pruner, arXiv 2503.09657, which prunes such levels with errors of earlier
layers in them, and by another solver).

The weights of a layer are in one file. A process maps the files into memory and reads what it
evaluates, so that levels do not have to fit into memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.masking.units import Group, PruningUnits
from pgprune.repair.repair import Repair
from pgprune.utils.files import tensor_bytes, write_file
from pgprune.utils.manifest import Manifest, files_below
from pgprune.utils.transfer import send

Weights = tuple[Tensor, Tensor | None]
"""A weight (D, kept inputs) and a bias (D,), None where there is none."""

_GROUPS = "groups.safetensors"


@dataclass(frozen=True)
class GroupLevels:
    """The levels of one group.

    Attributes:
        kept: units kept at each level, (levels,) int64, falling from all of them to 0.
        order: the group's units, those removed last first, (units,) int64.
        errors: squared error of the hidden states after the block at each level over their square,
            the mean of all tokens, (levels,) float64, rising from 0.
        width: inputs of the projection in a unit.
    """

    kept: Tensor
    order: Tensor
    errors: Tensor
    width: int


class Levels:
    """The levels of all groups of a model.

    Args:
        units: of the model.
        groups: the levels of each group, in the order of ``units.groups``.
        folder: with the weights, a file for each layer.
        device: where weights are read to; those read last stay there, one level of each group.
        tokens: that the model has read to fit them.

    Attributes:
        units: as given.
        groups: as given.
        tokens: as given.
    """

    def __init__(
        self,
        units: PruningUnits,
        groups: Sequence[GroupLevels],
        folder: Path,
        device: torch.device | None = None,
        tokens: int = 0,
    ) -> None:
        self.units = units
        self.tokens = tokens
        self.groups = list(groups)
        self._folder = folder
        self._device = device or torch.device("cpu")
        self._last: dict[tuple[int, str], tuple[int, Weights]] = {}
        self._index = {(group.layer, group.kind): i for i, group in enumerate(units.groups)}

    def masks(self, choices: Tensor) -> Tensor:
        """Makes masks of levels: (K, groups) int64 -> (K, n) uint8."""
        masks = torch.zeros(len(choices), self.units.n, dtype=torch.uint8)
        for row, choice in zip(masks, choices.tolist(), strict=True):
            for group, levels, level in zip(self.units.groups, self.groups, choice, strict=True):
                row[group.start + levels.order[: int(levels.kept[level])]] = 1
        return masks

    def below(self, masks: Tensor) -> Tensor:
        """Finds the levels that keep as many units of each group as masks (K, n), or fewer.

        Returns:
            (K, groups) int64.
        """
        counts = self.units.kept_counts(masks.cpu()).long()  # (K, groups)
        found = [
            (levels.kept > count[:, None]).sum(1)  # levels that keep more
            for levels, count in zip(self.groups, counts.T, strict=True)
        ]
        return torch.stack(found, dim=1)

    def weight(self, layer: int, kind: str, kept: int) -> Weights | None:
        """Returns the weight (D, kept inputs) and bias (D,) of a level; None if it keeps all.

        Raises:
            PruningError: the file of the layer is missing or damaged.
        """
        if kept == int(self.groups[self._index[layer, kind]].kept[0]):
            return None
        if self._last.get((layer, kind), (-1,))[0] != kept:
            self._last[layer, kind] = kept, self._read(layer, kind, kept)
        return self._last[layer, kind][1]

    def _read(self, layer: int, kind: str, kept: int) -> Weights:
        bias, device = f"{kind}.{kept}.bias", self._device
        try:
            with safe_open(path_of(self._folder, layer), "pt") as file:
                weight = send(file.get_tensor(f"{kind}.{kept}.weight"), device)
                there = bias in file.keys()  # noqa: SIM118
                return weight, send(file.get_tensor(bias), device) if there else None
        except (SafetensorError, OSError) as error:
            raise PruningError(
                f"the levels of layer {layer} in {str(self._folder)!r} are missing or damaged; "
                "start a new run"
            ) from error

    def repair(self, choice: Tensor) -> Repair:
        """Returns the weights of a level of each group, (groups,), as the repair of their mask."""
        repair = Repair()
        for group, levels, level in zip(
            self.units.groups, self.groups, choice.tolist(), strict=True
        ):
            kept = int(levels.kept[level])
            found = self.weight(group.layer, group.kind, kept)
            if found is None:
                continue
            weight, bias = (None if part is None else part.cpu() for part in found)
            assert weight is not None
            index = self._inputs(group, levels, kept)
            full = weight.new_zeros(len(weight), levels.width * len(levels.order))
            repair.weights[group.layer, group.projection] = full.index_copy(1, index, weight)
            if bias is not None:
                repair.biases[group.layer, group.projection] = bias
        return repair

    def _inputs(self, group: Group, levels: GroupLevels, kept: int) -> Tensor:
        """Returns the inputs of the projection that a level keeps, (i,) ascending."""
        width, order = levels.width, self.units.input_order(group)
        index = (levels.order[:kept, None] * width + torch.arange(width)).flatten()
        return (index if order is None else order[index]).sort().values

    def save(self) -> None:
        """Writes what is not of a single layer, and the manifest, which completes the folder.

        Raises:
            OSError: the disk is full or refuses.
        """
        tensors = {"tokens": torch.tensor(self.tokens)}
        for i, levels in enumerate(self.groups):
            width = torch.tensor(levels.width)
            values = {"kept": levels.kept, "order": levels.order, "errors": levels.errors}
            tensors |= {f"{i}.{name}": value for name, value in (values | {"width": width}).items()}
        write_file(self._folder / _GROUPS, tensor_bytes(tensors))
        Manifest.write(self._folder, files_below(self._folder))

    @classmethod
    def load(
        cls, units: PruningUnits, folder: Path, device: torch.device | None = None
    ) -> "Levels | None":
        """Reads the levels in a folder; None if they are not complete.

        Raises:
            PruningError: they are damaged or changed, or of other units.
        """
        manifest = Manifest.read(folder)
        if manifest is None:
            return None
        manifest.check(manifest.digests)
        try:
            tensors = load_file(folder / _GROUPS)
            groups = [
                GroupLevels(
                    tensors[f"{i}.kept"],
                    tensors[f"{i}.order"],
                    tensors[f"{i}.errors"],
                    int(tensors[f"{i}.width"]),
                )
                for i in range(len(units.groups))
            ]
            tokens = int(tensors["tokens"])
        except (SafetensorError, OSError, LookupError) as error:
            raise PruningError(
                f"the levels in {str(folder)!r} are damaged or of another model; start a new run"
            ) from error
        return cls(units, groups, folder, device, tokens)


def path_of(folder: Path, layer: int) -> Path:
    """Returns the file with the weights of a layer's levels."""
    return folder / f"{layer}.safetensors"
