"""Slices of the residual stream (SliceGPT, Ashkboos et al. 2024), and a dense model under them.

Before attention and before the MLP of each layer, 2 L points, the stream x (D wide, without its
mean where norms subtract it) is replaced by R R' x, where the columns of R (D, width) are
orthonormal. ``pgprune.surgery.slice_model`` makes a smaller model of them.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from pgprune.errors import PruningError
from pgprune.models.families import decoder_layers, family_of
from pgprune.models.family import Family
from pgprune.utils.files import tensor_bytes, write_file
from pgprune.utils.jsonl import parse_json

RECORD, TENSORS = "slices.json", "slices.safetensors"
"""Files of saved slices."""


@dataclass(frozen=True)
class Slices:
    """The directions of the residual stream that are kept.

    Attributes:
        rotations: (2 L, D, width), orthonormal columns: before attention and before the MLP of
            each layer in turn; float32, or float64 for float64 models.
    """

    rotations: Tensor

    @property
    def width(self) -> int:
        """Width of the sliced stream."""
        return self.rotations.shape[2]

    def __str__(self) -> str:
        dense = self.rotations.shape[1]
        return (
            f"Sliced: the residual stream is {self.width} numbers wide instead of {dense}; all "
            "heads and channels are there."
        )

    def save(self, directory: Path) -> None:
        """Writes ``slices.json``, and the rotations to ``slices.safetensors``.

        Raises:
            OSError: the disk is full or refuses.
        """
        points, dense, width = self.rotations.shape
        # The record is written last, so that a record tells that the tensors are complete.
        write_file(directory / TENSORS, tensor_bytes({"rotations": self.rotations}))
        record = {"layers": points // 2, "dense_width": dense, "width": width, "file": TENSORS}
        write_file(directory / RECORD, json.dumps(record, indent=1).encode())

    @classmethod
    def load(cls, directory: Path) -> "Slices":
        """Reads what ``save`` wrote.

        Raises:
            PruningError: a file is missing or damaged.
        """
        try:
            record = parse_json((directory / RECORD).read_bytes())
            rotations = load_file(directory / TENSORS)["rotations"]
            shape = (2 * record["layers"], record["dense_width"], record["width"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise PruningError(
                f"the slices in {directory} cannot be read ({error}); restore {RECORD} and "
                f"{TENSORS} as the run wrote them"
            ) from error
        if rotations.shape != shape:
            raise PruningError(
                f"the slices in {directory} are damaged: {TENSORS} holds rotations of shape "
                f"{tuple(rotations.shape)}, {RECORD} says {shape}; restore both"
            )
        return cls(rotations)


@contextmanager
def stream_sliced(model: nn.Module, slices: Slices) -> Iterator[None]:
    """Makes a dense model compute in the body what the sliced one would, without a second copy."""
    family = family_of(model.config)
    hooks = []
    points = slices.rotations.unflatten(0, (-1, 2))  # (L, 2, D, width)
    for layer, (first, second) in zip(decoder_layers(model, family), points, strict=True):
        hooks += projection_hooks(layer, family, first, second)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def projection_hooks(layer: nn.Module, family: Family, first: Tensor, second: Tensor) -> list[Any]:
    """Projects a layer's stream before attention and MLP, rotations (D, width); returns hooks."""
    norm = layer.get_submodule(family.mlp_norms[0])
    device = next(layer.parameters()).device
    first, second = first.to(device), second.to(device)  # layers may be on several devices
    seen: dict[str, Tensor] = {}

    def enter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return project(args[0], first, norm), *args[1:]

    def between(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen["stream"] = project(args[0], second, norm)
        return seen["stream"], *args[1:]  # kept for the sum in leave()

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen["added"] = output  # by the MLP

    def leave(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # The layer has added its MLP to the stream as it was before the second projection.
        return (seen.pop("stream") + seen.pop("added")).view_as(output)

    return [
        layer.register_forward_pre_hook(enter),
        norm.register_forward_pre_hook(between),
        layer.get_submodule(family.down).register_forward_hook(add),
        layer.register_forward_hook(leave),
    ]


def centred(stream: Tensor, norm: nn.Module) -> Tensor:
    """Subtracts the mean of the stream (..., D) if the norm that follows is a LayerNorm."""
    return stream - stream.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else stream


def project(stream: Tensor, rotation: Tensor, norm: nn.Module) -> Tensor:
    """Projects a stream (..., D) onto the columns of a rotation (D, width), in its precision."""
    wide = centred(stream.to(rotation.dtype), norm)
    return (wide @ rotation @ rotation.T).to(stream.dtype)  # R R' x
