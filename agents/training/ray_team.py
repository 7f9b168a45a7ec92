"""Shares the masks of a step among Ray actors, each with a replica of the model. Experimental.

Tested with actors on one host; it has not been run on a cluster. An actor that is lost is replaced,
and its masks are evaluated again. The main process evaluates no masks of a
step but does everything else, so it loads the model as well.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pgprune.envs.judge import Evaluate, Judge
from pgprune.errors import PruningError, ResourceError
from pgprune.models.load import fingerprint

_log = logging.getLogger(__name__)

_TRIES = 3  # evaluations of the same masks, which may be what kills the actors
_ANSWER = 1800.0  # seconds until an actor must have answered, its start included
Prepare = Callable[[str], Judge]


class Actors:
    """The replicas in Ray actors.

    Args:
        size: how many.
        setup: text that each makes its judge of.
        prepare: makes the judge; the nodes of the cluster must be able to import it.
        gpus: whether each actor gets a GPU where the cluster has any.

    Attributes:
        size: how many actors there are.

    Raises:
        PruningError: Ray is not installed, or the cluster has too few GPUs.
    """

    def __init__(self, size: int, setup: str, prepare: Prepare, gpus: bool) -> None:
        self._ray = load_ray()
        self._ray.init(log_to_driver=False, include_dashboard=False, logging_level="error")
        self.size = size
        self._arguments = (setup, prepare)
        self._followed: npt.NDArray[np.uint8] | None = None
        self._gpus = int(self._free_gpus() > 0 and gpus)
        if self._gpus and self._free_gpus() < size:
            self.close()
            raise PruningError(
                f"{size} actors need a GPU each; start at most as many as the cluster has"
            )
        self._actors = [self._actor() for _ in range(size)]

    def ready(self, model: str) -> None:
        """Waits for the actors to load their replicas, which must have this fingerprint.

        Raises:
            PruningError: one of them cannot load its replica, or has loaded another model.
        """
        for index in range(self.size):
            if self._answer(index, "model", ()) != model:
                raise PruningError(
                    f"actor {index} has loaded another model than the main process; put the same "
                    "one on every node"
                )

    def losses(self, masks: Tensor, input_ids: Tensor, local: Evaluate) -> Tensor:
        """Computes losses of masks (k, n) on (B, T) tokens; each actor evaluates a part."""
        parts = masks.cpu().tensor_split(min(len(masks), self.size))  # each (k', n)
        tasks = [(part.numpy(), input_ids.cpu().numpy()) for part in parts]
        return torch.cat([torch.tensor(losses) for losses in self._answers("losses", tasks)])

    def follow(self, mask: Tensor, local: Callable[[Tensor], None]) -> None:
        """Lets the repairs of all actors follow a mask (n,); ``local`` does so in this process."""
        self._followed = mask.to("cpu", torch.uint8).numpy()
        self._answers("follow", [(self._followed,)] * self.size)
        local(mask)

    def close(self) -> None:
        """Stops the actors. Safe to call twice."""
        self._ray.shutdown()

    def _actor(self) -> Any:
        remote = self._ray.remote(_Replica).options(num_gpus=self._gpus)
        return remote.remote(*self._arguments, self._followed)

    def _answers(self, method: str, tasks: list[tuple[Any, ...]]) -> list[Any]:
        """Gives the first actors a task each, at the same time; returns their answers."""
        asked = [self._ask(index, method, task) for index, task in enumerate(tasks)]
        pairs = zip(tasks, asked, strict=True)
        return [self._answer(index, method, *pair) for index, pair in enumerate(pairs)]

    def _ask(self, index: int, method: str, task: tuple[Any, ...]) -> Any:
        return getattr(self._actors[index], method).remote(*task)

    def _answer(self, index: int, method: str, task: tuple[Any, ...], asked: Any = None) -> Any:
        """Returns the answer of an actor, or of the one that replaces it.

        Raises:
            ResourceError: the actor cannot do it, or is lost too often, or does not answer.
        """
        errors = self._ray.exceptions
        for _ in range(_TRIES):
            try:
                reference = asked or self._ask(index, method, task)
                complaint, answer = self._ray.get(reference, timeout=_ANSWER)
            except errors.GetTimeoutError as error:
                raise ResourceError(
                    f"actor {index} has not answered for {_ANSWER:g} seconds"
                ) from error
            except errors.RayActorError as error:
                if error.actor_init_failed:
                    reason = str(error).strip().splitlines()[-1]
                    raise ResourceError(f"actor {index} cannot start: {reason}") from error
                _log.warning("actor %d was lost; a new one takes its place", index)
                self._actors[index], asked = self._actor(), None
            else:
                if complaint:
                    raise ResourceError(f"actor {index}: {complaint}")
                return answer
        raise ResourceError(f"actor {index} was lost {_TRIES} times with the same masks")

    def _free_gpus(self) -> float:
        return float(self._ray.cluster_resources().get("GPU", 0))


class _Replica:
    """The code of an actor: a judge that answers (complaint, result) and never raises."""

    def __init__(
        self, setup: str, prepare: Prepare, followed: npt.NDArray[np.uint8] | None
    ) -> None:
        self._complaint = ""
        try:
            self._judge = prepare(setup)
            if followed is not None:
                self._judge.follow(torch.from_numpy(followed.copy()))
        except PruningError as error:
            self._complaint = str(error)

    def model(self) -> tuple[str, str]:
        return self._attempt(lambda: fingerprint(*self._judge.lm.model.parameters()))

    def losses(self, masks: npt.NDArray[Any], ids: npt.NDArray[np.int64]) -> tuple[str, Any]:
        # Arrays from Ray are read-only, which tensors cannot be.
        rows, batch = torch.from_numpy(masks.copy()), torch.from_numpy(ids.copy())
        return self._attempt(lambda: self._judge(rows, batch).cpu().numpy())

    def follow(self, mask: npt.NDArray[np.uint8]) -> tuple[str, Any]:
        return self._attempt(lambda: self._judge.follow(torch.from_numpy(mask.copy())))

    def _attempt(self, work: Callable[[], Any]) -> tuple[str, Any]:
        try:
            return self._complaint, None if self._complaint else work()
        except PruningError as error:
            return str(error), None


def load_ray() -> Any:
    """Imports the package Ray.

    Raises:
        PruningError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise PruningError(
            "--ray-actors (experimental) needs Ray; run `pip install 'pgprune[ray]'`"
        ) from None
    return ray
