"""Evolution of masks: swaps kept for pruned units, and drops bad swaps after a few tokens.

Each generation mutates the parent mask. A mutation moves capacity from one (layer, kind) to another
of the same pool (or the same one): it prunes as many kept units of one as it keeps pruned units of
the other, mostly those whose scores are closest to the threshold. All offspring are evaluated on a
few sequences of the batch, the better half on twice as many, and so on, up to the whole batch. The
best of the last stage becomes the parent, which is itself evaluated in every stage.

Source: after EvoPress (Sieberling et al. 2024, arXiv 2410.14649), whose mutations switch levels of
compression between layers, and whose selection has stages of more and more tokens.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.base import Agent, lowest
from pgprune.agents.offsets import scores_of
from pgprune.metrics import Importance
from pgprune.utils.options import Config, option

_MOST_SWITCHES = 3  # between groups, of a mutation


@dataclass(frozen=True)
class EvolutionConfig(Config):
    """Evolution: how many masks it tries, and how far they may be from their parent."""

    offspring: int = option(16, "evolution: children of the parent mask in each step", minimum=1)
    stages: int = option(
        3, "evolution: rounds of selection; each doubles the tokens and halves the masks", minimum=1
    )
    reach: float = option(
        0.1,
        "evolution: largest share of a group's units that one mutation moves",
        above=0,
        maximum=1,
    )

    @property
    def masks(self) -> int:
        """Masks of a step, all of which the first stage evaluates."""
        return self.offspring


class Evolution(Agent):
    """Evolution of masks, with the methods of Stable-Baselines3.

    Args:
        env: the vector environment; its ``num_envs`` is the number of offspring.
        config: how many masks it tries, and how far they may be from their parent.
        importance: of the units, or the name of a metric; ``auto`` is ``stream-error`` for heads
            and channels.
        seed: of the masks and of the calibration stream.

    Attributes:
        scores: of the units, by which mutations choose among those of a group, (n,) float64.
        parent: the mask that the next generation is made of, (n,) uint8.

    Raises:
        PruningError: the config does not fit the environment.
    """

    saved_tensors = ("scores", "parent")

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        config: EvolutionConfig | None = None,
        importance: Importance | str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(env, config.masks if config else None, seed)
        self.config = config or EvolutionConfig(offspring=env.num_envs)
        units = self.budget.units
        self.scores = scores_of(self.env, importance, seed)
        self.parent = self.budget.round(self.scores)
        # Each pool has a budget, so capacity moves only between groups of one pool.
        pools = [units.group[pool.members].unique() for pool in self.budget.pools]
        self._neighbours = {int(group): groups for groups in pools for group in groups}

    def mask(self) -> Tensor:
        """Returns the parent, (n,) uint8 on the CPU."""
        return self.parent.clone()

    def draw(self) -> Tensor:
        """Draws one mutation of the parent, (n,) uint8."""
        return self._mutated(self._other_generator)

    @property
    def step_tokens(self) -> int:
        """Tokens of a generation; a stage evaluates its masks and the parent on new sequences."""
        sequences = done = 0
        for count, stop in self.stages():
            sequences += (count + 1) * (stop - done)
            done = stop
        return sequences * self.env.stream.sequence_length

    def stages(self) -> list[tuple[int, int]]:
        """Returns for each stage its offspring and the sequence of the batch that it ends at."""
        batch, stages = self.env.stream.batch_size, self.config.stages
        # The last stage ends at the whole batch, each earlier one at half of the next.
        stops = sorted({max(1, batch >> left) for left in range(stages)})
        return [(max(1, self.config.offspring >> i), stop) for i, stop in enumerate(stops)]

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Does one generation; returns its figures."""
        fresh = [self._mutated(self._generator) for _ in range(self.config.offspring)]
        masks = torch.stack([self.parent, *fresh])  # (1 + K, n)
        batch = self.env.stream.next()  # (B, T)
        sums = torch.zeros(len(masks), dtype=torch.float64)  # of losses over sequences
        alive, done = torch.arange(len(masks)), 0
        for count, stop in self.stages():
            alive = torch.cat([alive[:1], _best(sums, alive[1:], count)])  # the parent, offspring
            rows = masks[alive].to(self.env.problem.lm.device)
            sums[alive] += self.env.evaluate(rows, batch[done:stop]).sum(1).to("cpu", torch.float64)
            if not done:
                first = sums[1:] / stop  # (K,)
            done = stop
        if self._can_learn(first.isfinite()):
            self.parent = masks[int(_best(sums, alive, 1))].clone()
        self.steps += 1
        return self._figures(first, {"rollout/best_loss": lowest(sums[alive]) / done})

    def _mutated(self, generator: torch.Generator) -> Tensor:
        """Returns the parent with a few switches between groups, within the budget, (n,) uint8."""
        kept = self.parent.bool()
        draws = torch.randint(1, _MOST_SWITCHES + 1, (2,), generator=generator)
        # The smaller of two draws makes few switches more likely.
        for _ in range(int(draws.min())):
            kept = self.switched(kept, generator)
        # Kept units have values in (1, 2) and pruned ones in (0, 1), so kept ones come first. Units
        # of a pool may differ in cost; then scores decide which others fit.
        return self.budget.round(kept + self.scores.sigmoid())

    def switched(self, kept: Tensor, generator: torch.Generator) -> Tensor:
        """Prunes units of one group of a mask (n,) bool and keeps the same number of another."""
        group, groups = self.budget.units.group, self.budget.units.groups
        has_kept = torch.bincount(group, kept.double(), len(groups)) > 0  # (groups,)
        has_pruned = torch.bincount(group, (~kept).double(), len(groups)) > 0
        givers = [
            index
            for index in torch.nonzero(has_kept).flatten().tolist()
            if has_pruned[self._neighbours[index]].any()
        ]
        giver = givers[_below(len(givers), generator)]
        takers = self._neighbours[giver][has_pruned[self._neighbours[giver]]]
        taker = int(takers[_below(len(takers), generator)])
        given = torch.nonzero(kept & (group == giver)).flatten()
        taken = torch.nonzero(~kept & (group == taker)).flatten()
        count = min(len(given), len(taken), self._count(giver, taker, generator))
        # A random temperature: sometimes the units closest to the threshold, sometimes any.
        noise = torch.rand(1, generator=generator, dtype=torch.float64)
        scores = self.scores + noise * torch.randn(len(kept), generator=generator).double()
        kept = kept.clone()
        kept[given[scores[given].argsort(stable=True)[:count]]] = False
        kept[taken[scores[taken].argsort(stable=True, descending=True)[:count]]] = True
        return kept

    def _count(self, giver: int, taker: int, generator: torch.Generator) -> int:
        """Draws how many units a switch moves, log-uniformly, so that single ones are common."""
        groups = self.budget.units.groups
        smaller = min(groups[index].stop - groups[index].start for index in (giver, taker))
        most = max(1.0, self.config.reach * smaller)
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        # share < 1, so the number is at least 1 and less than ``most`` + 1.
        return math.floor(math.exp(share * math.log(most + 1)))


def _best(sums: Tensor, rows: Tensor, count: int) -> Tensor:
    """Returns the rows, of (r,), with the lowest sums of losses: (count,), or all if fewer."""
    return rows[_numbers(sums[rows]).argsort(stable=True)[:count]]


def _numbers(losses: Tensor) -> Tensor:
    """Replaces losses, (k,), that are not finite by infinity."""
    return losses.where(losses.isfinite(), torch.inf)


def _below(limit: int, generator: torch.Generator) -> int:
    """Draws an index below a limit."""
    return int(torch.randint(limit, (), generator=generator))
