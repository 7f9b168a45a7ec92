"""Shares the masks of a step among the processes of torchrun or ``accelerate launch``.

The main process (rank 0) runs everything, and no other process writes files. Each other process
holds a replica of the frozen model and evaluates the masks that it receives. Batches, masks and
losses are sent once a step by gloo, also beside GPUs. Each message is between the main process and
one other, because only the main process needs the losses. This also shows which process is missing;
a failed all-reduce does not.
"""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from pgprune.envs.judge import Evaluate, Judge
from pgprune.errors import PruningError, ResourceError
from pgprune.models.load import fingerprint
from pgprune.utils.process_ids import rank, world_size

_LOSSES, _FOLLOW = range(2)
_GOOD, _BAD = torch.tensor([0]), torch.tensor([1])
_ANSWER = timedelta(minutes=30)  # until a replica must have answered
_COMMAND = timedelta(days=365)  # until the next command must come: a metric may take hours
_CLOSING = 20  # tenths of a second in which the note that the main process closed must arrive
_SETUP, _CLOSED = "pgprune/setup", "pgprune/closed"  # keys of texts in the store


class RankLost(ResourceError):
    """A process that evaluated masks is gone."""


class Ranks:
    """The replicas in the other processes, for the main process; the others run ``serve``.

    Args:
        setup: text that the other processes make their judge of.
        patience: longest wait for an answer.
    """

    def __init__(self, setup: str, patience: timedelta = _ANSWER) -> None:
        self._store = _join()
        self._store.set(_SETUP, setup)
        self._lines = [_Line(other, patience) for other in range(1, world_size())]
        self._closed = self._waiting = self._terminated = False
        self._before = signal.signal(signal.SIGTERM, self._terminate)

    @property
    def size(self) -> int:
        """Number of processes that evaluate masks, this one included."""
        return world_size()

    def ready(self, model: str) -> None:
        """Waits for the others to load their replicas, which must have this fingerprint.

        Raises:
            PruningError: one of them cannot load its replica, or has loaded another model.
        """
        with self._waits():
            for line in self._lines:
                self._check(line)
                if self._text_of(line) != model:
                    raise PruningError(
                        f"rank {line.other} has loaded another model than the main process; put "
                        "the same one on every host"
                    )

    def losses(self, masks: Tensor, input_ids: Tensor, local: Evaluate) -> Tensor:
        """Computes losses of masks (k, n) on (B, T) tokens; each process evaluates a part."""
        # Neighbours stay together, since masks that agree on the first layers share their work.
        own, *parts = masks.to("cpu", torch.uint8).tensor_split(self.size)
        asked = [(line, part) for line, part in zip(self._lines, parts, strict=True) if len(part)]
        with self._waits():
            for line, part in asked:
                line.send(torch.tensor([_LOSSES, *part.shape, *input_ids.shape]))
                line.send(part)
                line.send(input_ids.cpu())
            # All others work while this process evaluates its own part.
            losses = [local(own, input_ids).cpu()]  # each (k', B)
            for line, part in asked:
                self._check(line)
                answer = line.receive((len(part), len(input_ids)), torch.float64)
                losses.append(answer.to(losses[0].dtype))
        return torch.cat(losses)

    def follow(self, mask: Tensor, local: Callable[[Tensor], None]) -> None:
        """Lets all processes follow a mask (n,); ``local`` does so in this one."""
        with self._waits():
            for line in self._lines:
                line.send(torch.tensor([_FOLLOW, 1, len(mask), 0, 0]))
                line.send(mask[None].to("cpu", torch.uint8))
            local(mask)
            for line in self._lines:
                self._check(line)

    def close(self) -> None:
        """Closes the connection, which ends the other processes. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._store.set(_CLOSED, "")
            dist.destroy_process_group()
            signal.signal(signal.SIGTERM, self._before)

    def _check(self, line: "_Line") -> None:
        """Waits until another process has done a command, or raises its complaint."""
        if line.receive((1,), torch.int64) != _GOOD:
            raise ResourceError(f"rank {line.other}: {self._text_of(line)}")

    def _text_of(self, line: "_Line") -> str:
        return self._store.get(_key_of(line.other)).decode()

    @contextmanager
    def _waits(self) -> Iterator[None]:
        """Delays SIGTERM, so that a process that does not answer can be named first."""
        self._waiting = True
        try:
            yield
        except RankLost:
            self._ignore_terminations()
            raise
        finally:
            self._waiting = False
        if self._terminated:
            self._end()

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGTERM, with which torchrun ends the processes that are left."""
        self._terminated = True
        if not self._waiting:
            self._end()

    def _ignore_terminations(self) -> None:
        """Lets this process say why it ends, whenever the SIGTERM of torchrun comes."""
        self._before = signal.SIG_IGN  # also once the connection is closed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _end(self) -> None:
        self._ignore_terminations()
        gone = [str(line.other) for line in self._lines if line.is_broken()]
        raise RankLost(f"rank {', '.join(gone)} died" if gone else "the launcher ended the run")


def serve(prepare: Callable[[str], Judge]) -> int:
    """Evaluates masks until the main process closes the connection; returns the exit status.

    Args:
        prepare: makes the judge of the main process's ``setup``.
    """
    store = _join()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the main process decides when to end
    try:
        _obey(_Line(0, _COMMAND), store, prepare)
    except RankLost:
        for _ in range(_CLOSING):
            if store.check([_CLOSED]):
                return 0
            time.sleep(0.1)
        if rank() == 1:  # one message is enough
            says = "error: the main process, rank 0, died; resume the run with --resume"
            print(says, file=sys.stderr)
    return 1


def _obey(main: "_Line", store: Store, prepare: Callable[[str], Judge]) -> None:
    """Loads the replica and does the commands of the main process."""
    try:
        judge = prepare(store.get(_SETUP).decode())
        store.set(_key_of(rank()), fingerprint(*judge.lm.model.parameters()))
        main.send(_GOOD)
        while True:
            command, *shape = main.receive((5,), torch.int64).tolist()
            masks = main.receive((shape[0], shape[1]), torch.uint8)
            if command == _FOLLOW:
                judge.follow(masks[0])
                main.send(_GOOD)
            else:
                losses = judge(masks, main.receive((shape[2], shape[3]), torch.int64))
                main.send(_GOOD)
                main.send(losses.double().cpu())
    except RankLost:
        raise
    except PruningError as error:
        store.set(_key_of(rank()), str(error))
        main.send(_BAD)
        main.receive((1,), torch.int64)  # waits for the end of the connection


class _Line:
    """The connection to another process.

    Args:
        other: its rank.
        patience: longest wait for a message.
    """

    def __init__(self, other: int, patience: timedelta) -> None:
        self.other = other
        self._patience = patience

    def send(self, tensor: Tensor) -> None:
        """Sends a tensor of the host.

        Raises:
            RankLost: the other process is gone.
        """
        with self._open():
            dist.send(tensor.contiguous(), self.other)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Waits for a tensor.

        Raises:
            RankLost: it does not arrive.
        """
        tensor = torch.empty(shape, dtype=dtype)
        with self._open():
            work = dist.irecv(tensor, self.other)
            assert work is not None
            work.wait(self._patience)
        return tensor

    def is_broken(self) -> bool:
        """Returns whether the other process is gone; only for the end, as it takes a message."""
        try:
            dist.irecv(torch.empty(1), self.other)  # raises where nothing can arrive any more
        except RuntimeError:
            return True
        return False

    @contextmanager
    def _open(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            late = "timed out" in str(error).lower()
            what = f"has not answered for {self._patience}" if late else "died"
            raise RankLost(f"rank {self.other} {what}") from error


def _join() -> Store:
    """Joins the other processes; returns the store of texts that all of them share."""
    store, number, count = next(rendezvous("env://", rank(), world_size()))
    dist.init_process_group("gloo", store=store, rank=number, world_size=count)
    return store


def _key_of(rank: int) -> str:
    return f"pgprune/words/{rank}"
