"""A repair: new weights or biases of what a mask keeps, as a value that is saved and loaded."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.families import decoder_layers, refitted_of
from pgprune.models.family import Family
from pgprune.repair.refit import holding
from pgprune.repair.solution import Change
from pgprune.utils.files import tensor_bytes, write_file


@dataclass(frozen=True)
class Repair:
    """New weights and biases of projections, by layer and kind.

    The kind ``heads`` is the attention output projection, ``channels`` the MLP down projection,
    ``up`` the up projection of a gated MLP, whose outputs are channels, ``experts`` the down
    projections of all experts of a mixture.

    Attributes:
        weights: new weights of the dense shape, (outputs, inputs) or (experts, outputs, inputs) as
            the model stores it, zero for what is pruned; on the CPU.
        biases: new biases, (outputs,) or (experts, outputs), which replace dense ones or are
            added; on the CPU.
    """

    weights: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    biases: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def parameters(self, layer: int, family: Family) -> dict[str, Tensor]:
        """Returns the new parameters of one layer, by their names in it."""
        return {
            name: tensors[layer, kind]
            for kind, names in family.refitted.items()
            for name, tensors in zip(names, (self.weights, self.biases), strict=True)
            if (layer, kind) in tensors
        }

    def save(self, path: Path) -> None:
        """Writes a safetensors file.

        Raises:
            OSError: the disk is full or refuses; a previous file stays as it was.
        """
        tensors = {
            f"{layer}.{kind}.{name}": tensor
            for name, by_key in self._by_name().items()
            for (layer, kind), tensor in by_key.items()
        }
        write_file(path, tensor_bytes(tensors))

    @classmethod
    def load(cls, path: Path) -> "Repair":
        """Reads what ``save`` wrote.

        Raises:
            PruningError: the file is missing, damaged or something else.
        """
        repair = cls()
        try:
            for key, tensor in load_file(path).items():
                layer, kind, name = key.split(".")
                repair._by_name()[name][int(layer), kind] = tensor
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise PruningError(
                f"the repair {str(path)!r} is missing or damaged; prune again to restore it"
            ) from error
        return repair

    def _by_name(self) -> dict[str, dict[tuple[int, str], Tensor]]:
        """Returns the tensors by the names that modules give them."""
        return {"weight": self.weights, "bias": self.biases}


@contextmanager
def repaired(lm: MaskedLM, repair: Repair) -> Iterator[None]:
    """Puts a repair into the model while the body runs, and the dense parameters back afterwards.

    A repair belongs to a mask and does not prune: evaluate that mask in the body.

    Raises:
        PruningError: the repair is of another model.
    """
    check_repair(lm.model, repair)
    layers = decoder_layers(lm.model, lm.family)
    with ExitStack() as stack:
        for layer, kind in sorted(repair.weights.keys() | repair.biases.keys()):
            new = repair.weights.get((layer, kind)), repair.biases.get((layer, kind))
            names = lm.family.of(layers[layer]).refitted[kind]
            stack.enter_context(holding(layers[layer], names, *new))
        yield


def check_repair(model: nn.Module, repair: Repair) -> None:
    """Checks that a model has the projections that a repair changes.

    Raises:
        PruningError: the repair is of another model.
    """
    for layer, kind in sorted(repair.weights.keys() | repair.biases.keys()):
        dense, key = refitted_of(model, layer, kind), (layer, kind)
        new = repair.weights.get(key), repair.biases.get(key)
        if dense is None or not _fits(new, dense):
            raise PruningError(
                f"the repair's {kind} of layer {layer} are of another model; take the repair of "
                "the run that pruned this one"
            )


def _fits(new: Change, dense: tuple[Tensor, Tensor | None]) -> bool:
    """Tells if a new weight and bias have the shapes of the dense ones."""
    weight, bias = dense
    shapes = weight.shape, weight.shape[:1] if bias is None else bias.shape
    pairs = zip(new, shapes, strict=True)
    return all(each is None or each.shape == shape for each, shape in pairs)
