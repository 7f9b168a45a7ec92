"""Trains with several processes, each with a replica of the model, on parts of each batch.

torchrun or ``accelerate launch`` starts them, accelerate joins them. All do the same with the same
seeds, but for three things: each computes a part of the windows, of which sums go to all; a Ctrl-C
that one gets is for all; and the main process (rank 0) alone writes and prints. Sums are the same
in all processes, and so are all decisions and all weights. One process needs none of this.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from pgprune.errors import PruningError, ResourceError
from pgprune.utils.devices import choose_device
from pgprune.utils.process_ids import rank, world_size

_PATIENCE = timedelta(minutes=30)  # until another process must have answered
_SAID = "pgprune/said"  # key in the store that all processes share
_RESUME = "the same command with --resume goes on from the last checkpoint"
_ENDED = f"another process died, or the launcher was told to end; {_RESUME}"


def join(device: str) -> None:
    """Joins the processes of the command, if there are several.

    Args:
        device: as ``choose_device``.

    Raises:
        PruningError: accelerate is not installed, or cannot join processes on this device.
    """
    if world_size() == 1:
        return
    try:
        from accelerate import PartialState
    except ImportError:
        raise PruningError(
            "several processes need the package accelerate; run `pip install 'pgprune[finetune]'`"
        ) from None
    chosen = choose_device(device)
    with _lost():
        state = PartialState(cpu=chosen.type == "cpu", timeout=_PATIENCE)
    if state.num_processes != world_size():
        raise PruningError(
            f"{world_size()} processes cannot share the device {chosen.type}; choose cpu or cuda, "
            "or start one process"
        )


def check_alike(facts: Mapping[str, Any]) -> None:
    """Checks that all processes are about to do the same.

    Raises:
        PruningError: a fact is another one in the main process.
    """
    if world_size() == 1:
        return
    from accelerate.utils import broadcast_object_list

    with _lost():
        (right,) = broadcast_object_list([dict(facts)])
    if different := [name for name, value in facts.items() if right[name] != value]:
        raise PruningError(
            f"it has another {' and '.join(different)} than the main process; give all hosts the "
            "same files"
        )


def own(rows: Tensor) -> Tensor:
    """Returns the part of rows (B, ...) that this process computes, (b, ...); it may be empty."""
    return rows.tensor_split(world_size())[rank()]


def summed(tensor: Tensor) -> Tensor:
    """Returns the sum of the tensors of all processes."""
    if world_size() == 1:
        return tensor
    from accelerate import PartialState
    from accelerate.utils import reduce

    with _lost():
        return reduce(tensor.to(PartialState().device), "sum").to(tensor.device)


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Gives each process the sums of all gradients; where no process has one, there is none."""
    trained = list(parameters)
    present = summed(torch.tensor([float(each.grad is not None) for each in trained]))
    for parameter in (each for each, count in zip(trained, present, strict=True) if count):
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = summed(gradient)


def shared(compute: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Makes all processes compute losses of windows together, (B, T) -> (1, B)."""

    def losses(ids: Tensor) -> Tensor:
        rows, found = own(torch.arange(len(ids))), torch.zeros(1, len(ids), dtype=torch.float64)
        if len(rows):
            found[:, rows] = compute(ids[rows]).cpu().double()
        return summed(found)

    return losses


def agreed(here: Callable[[], bool]) -> Callable[[], bool]:
    """Makes something true in all processes as soon as it is true in one."""
    return lambda: bool(summed(torch.tensor(float(here()))))


@contextmanager
def one_voice() -> Iterator[None]:
    """Lets one process alone say why a command of several ends, and ends with its launcher."""
    if world_size() == 1:
        yield
        return
    voice = _Voice()
    try:
        yield
    except PruningError as error:
        if not voice.take():
            sys.exit(1)
        raise PruningError(f"rank {rank()}: {error}" if rank() else str(error)) from error
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Voice:
    """The right to say why the command ends, which goes to the first process that asks for it."""

    def __init__(self) -> None:
        self._store, *_ = next(rendezvous("env://", rank(), world_size()))
        self._lock, self._mine = threading.Lock(), False
        # Python's handlers have to wait for a call that waits for a dead process; a pipe has not.
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()

    def take(self) -> bool:
        """Returns whether this process has the right, from now on."""
        with self._lock:
            try:
                self._mine = self._mine or self._store.add(_SAID, 1) == 1
            except RuntimeError:  # who keeps the store is gone
                self._mine = True
            return self._mine

    def _watch(self, reading: int) -> None:
        """Ends this process when the launcher says so, as it does after the end of another one."""
        while os.read(reading, 1) != bytes([signal.SIGTERM]):
            pass
        if self._mine:
            return  # it is ending
        if self.take():
            print(f"error: {_ENDED}", file=sys.stderr, flush=True)
        os._exit(1)


@contextmanager
def _lost() -> Iterator[None]:
    """Says that another process is gone where it does not answer in the body."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ResourceError(_ENDED) from error
