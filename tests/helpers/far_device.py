"""A GPU that is not there, to count how often the host would wait for it.

`Far` tensors say that they are on a GPU and hold their values on the host. While a `FarDevice` is
active they compute like others, and what a real GPU would make the host wait for is counted: values
that Python asks for, results whose shapes depend on values, copies that are not asked to go by
themselves. As with a real GPU, an operation refuses tensors of both places.
"""

from types import TracebackType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

GPU = torch.device("cuda:0")
_WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "bincount"}
_COPIES = {"_to_copy", "copy_"}
_INDEXING = {"index", "index_put", "index_put_"}


class Far(Tensor):
    """A tensor that says that it is on a GPU; inside, torch takes it for one without values."""

    held: Tensor
    device = GPU  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "Far":
        wrapper: Any = Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        return wrapper(cls, held.shape, strides=held.stride(), dtype=held.dtype, device="meta")

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        """The values, which torch cannot read from these tensors."""
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} while the far device is not active")


class FarDevice(TorchDispatchMode):
    """Runs what is asked of far tensors, and counts what a host waits for.

    Attributes:
        waits: one name for each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._patches = pytest.MonkeyPatch()

    def __enter__(self) -> "FarDevice":
        generator = torch.Generator
        self._patches.setattr("torch.cuda._lazy_init", lambda: None)
        self._patches.setattr("torch.Generator", lambda *_: generator())
        self._patches.setattr(Tensor, "pin_memory", lambda tensor: tensor.clone())
        self._patches.setattr(
            "torch.accelerator.synchronize", lambda device: self.waits.append("synchronize")
        )
        return super().__enter__()  # type: ignore[return-value]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._patches.undo()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, options = function.overloadpacket.__name__, dict(kwargs or {})
        tensors = _tensors((args, options))
        far = any(isinstance(tensor, Far) for tensor in tensors)
        mixed = far and any(not isinstance(tensor, Far) and tensor.ndim for tensor in tensors)
        to = torch.device(options["device"]) if options.get("device") is not None else None
        if to is not None:
            far_after = to.type in (GPU.type, "meta")
            options["device"] = torch.device("cpu")
        else:
            far_after = isinstance(args[0], Far) if name == "copy_" else far
        if name in _COPIES:
            freely = options.pop("non_blocking", False) or (name == "copy_" and args[2:] == (True,))
            if (mixed or (to is not None and far != far_after)) and not freely:
                self.waits.append(name)
        elif name in _INDEXING:
            by_value = any(tensor.dtype == torch.bool for tensor in _tensors(args[1]))
            if mixed or (far and by_value):
                self.waits.append(name)
        else:
            assert not mixed, f"{function} of tensors of both places"
            if far and (name in _WAITING or "unique" in name):
                self.waits.append(name)
        result = function(*_held(args), **_held(options))
        return tree_map_only(Tensor, Far, result) if far_after else result


def take(model: nn.Module) -> None:
    """Moves a model to the far device."""
    moved: dict[int, Any] = {}
    for module in model.modules():
        for place in (module._parameters, module._buffers):
            for name, tensor in list(place.items()):
                if tensor is not None:
                    far = moved.setdefault(id(tensor), Far(tensor.detach()))
                    far._is_param = isinstance(tensor, nn.Parameter)
                    place[name] = far


def _held(tree: Any) -> Any:
    return tree_map_only(Far, lambda tensor: tensor.held, tree)


def _tensors(tree: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map_only(Tensor, found.append, tree)
    return found
