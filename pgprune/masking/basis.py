"""The basis of a dense model that units are counted in: exact changes of its weights before."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn

from pgprune.masking.channel_order import fit_order, order_channels
from pgprune.masking.units import PruningUnits
from pgprune.models.value_rotation import fit_rotations, rotate_values


@dataclass(frozen=True)
class Basis:
    """What a model is changed to before it is pruned, without a change of what it computes.

    Attributes:
        rotations: of the value dimensions, as ``fit_rotations`` returns them; None for those of the
            model as it is loaded.
        order: of the channels of experts, as ``fit_order`` returns it; None likewise.
    """

    rotations: Tensor | None = None
    order: Tensor | None = None

    @classmethod
    def fitted(
        cls, model: nn.Module, units: PruningUnits, windows: Callable[[], Tensor], rotate: bool
    ) -> Self:
        """Finds the basis for units of a model.

        Args:
            model: a causal LM of a known family, dense.
            units: of the model.
            windows: returns calibration token ids, (N, T), where they are needed.
            rotate: whether the basis of value dimensions changes.
        """
        return cls(
            fit_rotations(model, windows()) if rotate and "values" in units.kinds else None,
            fit_order(model, windows()) if units.multiply else None,
        )

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Reads the basis among tensors by name."""
        return cls(tensors.get("rotations"), tensors.get("order"))

    def tensors(self) -> dict[str, Tensor]:
        """Returns what was fitted, by name."""
        both = {"rotations": self.rotations, "order": self.order}
        return {name: tensor for name, tensor in both.items() if tensor is not None}

    def apply(self, model: nn.Module) -> tuple[str, ...]:
        """Changes a model in place; returns sentences that say so."""
        notes: tuple[str, ...] = ()
        if self.rotations is not None:
            rotate_values(model, self.rotations)
            notes += (
                "Before pruning, value dimensions were put into another basis than they have in "
                "the base model, which changes nothing that it computes.",
            )
        if self.order is not None:
            order_channels(model, self.order)
            notes += (
                "Before pruning, the channels of each expert were put into another order than they "
                "have in the base model, which changes nothing that it computes.",
            )
        return notes
