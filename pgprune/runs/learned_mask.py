"""Reads the mask that a run has learned, with the scores that it was rounded from."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pgprune.errors import PruningError, first_line
from pgprune.masking.basis import Basis

_TIE = 1e-9  # far less than probabilities differ by that are not saturated


@dataclass(frozen=True)
class LearnedMask:
    """The mask of a run, and what the run says of it.

    Attributes:
        mask: (n,) uint8, 1 keeps.
        granularity: of its units.
        channel_block: channels of one unit.
        parameters: of all its units together.
        scores: (n,) float64, what the mask was rounded from: the final keep probabilities, where
            they tie with a preference for what the initial mask keeps, or a method's scores. None
            where the run kept neither.
        probable: whether the scores are probabilities, which compare between layers.
        basis: of the model that the mask is over.
    """

    mask: Tensor
    granularity: str
    channel_block: int
    parameters: int
    scores: Tensor | None
    probable: bool
    basis: Basis = Basis()

    @classmethod
    def read(cls, path: Path) -> "LearnedMask":
        """Reads the mask that a run has learned from its mask.safetensors.

        Raises:
            PruningError: there is none, or it is truncated or not a mask.
        """
        if not path.exists():
            raise PruningError(
                f"there is no {path}: a run writes it when it ends; resume it with --resume"
            )
        try:
            with safe_open(path, "pt") as file:
                described = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            # A KeyError below says which entry the file lacks.
            mask = tensors["mask"]
            learned = cls(
                mask,
                described["granularity"],
                int(described["channel_block"]),
                int(described["parameters"]),
                _scores(tensors),
                "probabilities" in tensors,
                Basis.of(tensors),
            )
            is_mask = mask.ndim == 1 and mask.dtype == torch.uint8
            if is_mask and bool(((mask == 0) | (mask == 1)).all()):
                return learned
            reason = "it holds other values than 0 and 1"
        except KeyError as error:
            reason = f"it lacks {error}"
        except (SafetensorError, OSError, ValueError) as error:
            reason = first_line(error)
        raise PruningError(f"the mask {path} is damaged ({reason}); restore the file of the run")


def _scores(tensors: dict[str, Tensor]) -> Tensor | None:
    """Returns scores that order all units, (n,) float64."""
    scores = tensors.get("probabilities", tensors.get("scores"))
    if scores is None or scores.shape != tensors["mask"].shape:
        return None
    # Many final probabilities are exactly 1. The initial mask orders those.
    if "probabilities" not in tensors or (initial := tensors.get("initial")) is None:
        return scores.double()
    if initial.shape != scores.shape:
        raise ValueError(f"its initial mask has {initial.numel()} units of {scores.numel()}")
    return scores.double() + _TIE * initial
