"""Says how long making a model takes and what memory, from a few evaluations of the model."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from pgprune.agents.training.loaded import Loaded
from pgprune.budget.problem import TOKENS_PER_TIMESTEP
from pgprune.data.training_data import TrainingDataConfig
from pgprune.finetuning.objectives import autocast
from pgprune.utils.progress import phase

_ROUNDS = 2  # of evaluations that are timed; the first one warms up, the faster one counts
_SURE = 400  # windows of each text that are usually enough for a standard error of 1 %
_TRAINED = 20  # bytes of a trained weight in float32: itself, gradient, two moments, the best


@dataclass(frozen=True)
class Forecast:
    """What was measured and counted of a search before it began.

    Attributes:
        seconds: of the dense model on 1,024 tokens.
        masked_seconds: of a mask within the budget on 1,024 tokens.
        bfloat16_seconds: of the dense model, with products in bfloat16.
        parameters: of the dense model.
        kept: parameters that such a mask leaves.
        itemsize: bytes of a weight.
        evaluations: of masks in the search.
        fitted: tokens that refitted weights are computed from.
        judged: tokens that the result is evaluated on.
        window: tokens of a window that is trained on.
    """

    seconds: float
    masked_seconds: float
    bfloat16_seconds: float
    parameters: int
    kept: int
    itemsize: int
    evaluations: int
    fitted: int
    judged: int
    window: int

    @classmethod
    def of(cls, loaded: Loaded) -> "Forecast":
        """Measures three evaluations of the model that is loaded."""
        settings, problem = loaded.settings, loaded.problem
        lm, units = problem.lm, problem.units
        batch = problem.stream.head(problem.stream.batch_size)
        scores = torch.rand(units.n, generator=torch.Generator().manual_seed(0))
        mask = problem.budget.round(scores.double())
        tokens = lm.meter.tokens
        with phase("measuring an evaluation"):
            whole = partial(lm.losses, units.ones()[None], batch)
            dense, masked = _fastest(whole), _fastest(partial(lm.losses, mask[None], batch))
            with autocast("bfloat16", lm.device)():
                rounded = _fastest(whole)
        lm.meter.tokens = tokens  # no cost of the search
        per, usual = TOKENS_PER_TIMESTEP / batch.numel(), TrainingDataConfig().sequence_length
        return cls(
            seconds=dense * per,
            masked_seconds=masked * per,
            bfloat16_seconds=rounded * per,
            parameters=lm.parameters,
            kept=lm.parameters - units.pruned_parameters(mask),
            itemsize=lm.dtype.itemsize,
            evaluations=settings.run.total_timesteps,
            fitted=loaded.repair_windows.numel(),
            window=min(usual, getattr(lm.model.config, "max_position_embeddings", None) or usual),
            judged=sum(min(_SURE, len(ids)) * ids.shape[1] for ids in loaded.windows.values()),
        )

    def training_memory(self, train: str) -> int:
        """Returns the bytes of teacher and student, and what is kept for trained weights.

        Args:
            train: ``layers`` or ``lora``, whose adapters are few.
        """
        both = (self.parameters + self.kept) * self.itemsize
        return both + (self.kept * (_TRAINED - self.itemsize) if train == "layers" else 0)

    @property
    def share(self) -> float:
        """Share of the parameters that is kept."""
        return self.kept / self.parameters

    @property
    def precision(self) -> str:
        """Number format of the products of the recovery, as ``--precision`` of finetuning."""
        return "bfloat16" if self.bfloat16_seconds < self.seconds else "auto"

    @property
    def teaching_seconds(self) -> float:
        """Seconds of the dense model on 1,024 tokens in that format."""
        return min(self.seconds, self.bfloat16_seconds)

    def recovery_tokens(self, seconds: float) -> int:
        """Returns how many tokens the dense model can teach in some seconds.

        The teacher and the student run forward, and the student backward, which takes twice its
        time forward.
        """
        update = self.teaching_seconds * (1 + 3 * self.share) * 1.1  # and AdamW
        return max(1, int(seconds / update * TOKENS_PER_TIMESTEP))


def _fastest(work: Callable[[], object]) -> float:
    """Times work a few times; returns the fewest seconds."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
