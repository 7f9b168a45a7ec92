"""Masks of a step spread over the processes that torchrun or ``accelerate launch`` starts.

The main process (rank 0) does all that a single process does; it alone writes and prints. The
others hold a replica of the frozen model each and evaluate the masks that they are sent. Only
batches, masks and losses travel, once a step, by gloo, also beside GPUs. They do so between the
main process and each other one, as nobody else needs the losses, and whoever is missing can be
named, which a failed all-reduce cannot.
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
_ANSWER = timedelta(minutes=30)  # that the main process waits for
_COMMAND = timedelta(days=365)  # that the others wait for: a metric may take its time
_LAST_WORD = 20  # tenths of a second that it may come late, from one that hangs up on purpose
_SETUP, _CLOSED = "pgprune/setup", "pgprune/closed"  # keys of what is said in words


class RankLost(ResourceError):
    """A process that evaluated masks is gone."""


class Ranks:
    """All processes of a command as a team, to the main one; the others are in ``serve``.

    Args:
        setup: what the others make their judge of.
    """

    def __init__(self, setup: str) -> None:
        self._store = _join()
        self._store.set(_SETUP, setup)
        self._lines = [_Line(other, _ANSWER) for other in range(1, world_size())]
        self._closed = self._listening = self._told_to_end = False
        self._before = signal.signal(signal.SIGTERM, self._told)

    @property
    def size(self) -> int:
        """How many processes evaluate masks, this one included."""
        return world_size()

    def ready(self, model: str) -> None:
        """Waits for the others to load their replicas, which must have this fingerprint.

        Raises:
            PruningError: one of them cannot load its replica, or has loaded another model.
        """
        with self._attentive():
            for line in self._lines:
                self._check(line)
                if self._said(line) != model:
                    raise PruningError(
                        f"rank {line.other} has loaded another model than the main process; put "
                        "the same one on every host"
                    )

    def losses(self, masks: Tensor, input_ids: Tensor, local: Evaluate) -> Tensor:
        """The losses of masks (k, n) on (B, T) tokens, a part of the masks by each process."""
        own, *parts = masks.to("cpu", torch.uint8).tensor_split(self.size)
        asked = [(line, part) for line, part in zip(self._lines, parts, strict=True) if len(part)]
        with self._attentive():
            for line, part in asked:
                line.send(torch.tensor([_LOSSES, *part.shape, *input_ids.shape]))
                line.send(part)
                line.send(input_ids.cpu())
            losses = [local(own, input_ids).cpu()]  # each (k', B)
            for line, part in asked:
                self._check(line)
                answer = line.receive((len(part), len(input_ids)), torch.float64)
                losses.append(answer.to(losses[0].dtype))
        return torch.cat(losses)

    def follow(self, mask: Tensor, local: Callable[[Tensor], None]) -> None:
        """Lets all processes follow a mask (n,); ``local`` is what this one does."""
        with self._attentive():
            for line in self._lines:
                line.send(torch.tensor([_FOLLOW, 1, len(mask), 0, 0]))
                line.send(mask[None].to("cpu", torch.uint8))
            local(mask)
            for line in self._lines:
                self._check(line)

    def close(self) -> None:
        """Hangs up, by which the other processes end; again, it does nothing."""
        if not self._closed:
            self._closed = True
            self._store.set(_CLOSED, "")
            dist.destroy_process_group()
            signal.signal(signal.SIGTERM, self._before)

    def _check(self, line: "_Line") -> None:
        """Waits until another process has done what it was told, or passes on why it cannot."""
        if line.receive((1,), torch.int64) != _GOOD:
            raise ResourceError(f"rank {line.other}: {self._said(line)}")

    def _said(self, line: "_Line") -> str:
        return self._store.get(_words_of(line.other)).decode()

    @contextmanager
    def _attentive(self) -> Iterator[None]:
        """Lets a process that does not answer be named before SIGTERM ends this one."""
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
        if self._told_to_end:
            self._end()

    def _told(self, number: int, frame: FrameType | None) -> None:
        """Takes SIGTERM, by which torchrun ends the processes that are left."""
        self._told_to_end = True
        if not self._listening:
            self._end()

    def _end(self) -> None:
        gone = [str(line.other) for line in self._lines if line.is_broken()]
        raise RankLost(f"rank {', '.join(gone)} died" if gone else "the launcher ended the run")


def serve(prepare: Callable[[str], Judge]) -> int:
    """Evaluates masks for the main process until it hangs up; returns the exit status.

    Args:
        prepare: makes the judge of the main process's ``setup``.
    """
    store = _join()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the main process decides when to end
    try:
        _obey(_Line(0, _COMMAND), store, prepare)
    except RankLost:
        for _ in range(_LAST_WORD):
            if store.check([_CLOSED]):
                return 0
            time.sleep(0.1)
        if rank() == 1:  # one message is enough
            says = "error: the main process, rank 0, died; go on with the run by --resume"
            print(says, file=sys.stderr)
    return 1


def _obey(main: "_Line", store: Store, prepare: Callable[[str], Judge]) -> None:
    """Loads the replica and does what the main process says, as long as both can."""
    try:
        judge = prepare(store.get(_SETUP).decode())
        store.set(_words_of(rank()), fingerprint(*judge.lm.model.parameters()))
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
        store.set(_words_of(rank()), str(error))
        main.send(_BAD)
        main.receive((1,), torch.int64)  # nothing comes: it hangs up


class _Line:
    """The connection to another process.

    Args:
        other: its rank.
        patience: how long to wait for what it says.
    """

    def __init__(self, other: int, patience: timedelta) -> None:
        self.other = other
        self._patience = patience

    def send(self, tensor: Tensor) -> None:
        """Sends a tensor of the host.

        Raises:
            RankLost: there is no one to take it.
        """
        with self._open():
            dist.send(tensor.contiguous(), self.other)

    def receive(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Waits for a tensor.

        Raises:
            RankLost: it does not come.
        """
        tensor = torch.empty(shape, dtype=dtype)
        with self._open():
            work = dist.irecv(tensor, self.other)
            assert work is not None
            work.wait(self._patience)
        return tensor

    def is_broken(self) -> bool:
        """Whether the other process is gone; for the end, as it makes later messages miss."""
        try:
            dist.irecv(torch.empty(1), self.other)  # is refused where nothing can come any more
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
    """Joins the other processes; returns where all of them can leave words."""
    store, number, count = next(rendezvous("env://", rank(), world_size()))
    dist.init_process_group("gloo", store=store, rank=number, world_size=count)
    return store


def _words_of(rank: int) -> str:
    return f"pgprune/words/{rank}"
