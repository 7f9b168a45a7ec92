"""Searches among levels: how much each layer keeps of each kind, with the weights that are shipped.

The policy is one level for each (layer, kind). A step evaluates the present choice and choices that
differ from it in one group only, all on one batch: the difference of their losses is the advantage
of that action, almost without the noise of the batch. After a round of steps the policy is improved
at once for all groups: among the levels within a trust region, the advantages are taken to add up,
which is a knapsack under the budget. Later rounds look closer around the answer.

Between levels that were tried, a loss is taken to rise in proportion to the squared error that the
levels leave at their projection's output, which is known from fitting them.

This is ours. Choosing levels of refitted weights for each layer is Tyr-the-Pruner's (Li et al.
2025, arXiv 2503.09657), which searches by evolution.
"""

import math
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.base import COUNTS, Agent, lowest
from pgprune.agents.levels.start import best
from pgprune.metrics import Importance
from pgprune.repair.levels import Levels

SHARES = (0.5, 0.25, 0.25)
"""Of the steps, by round."""

RADII = (3, 2, 1)
"""Of the trust region in steps of the grid, by round. A kv group is tried alone."""

_FEW = 8  # units of a group, whose levels are tried one by one


class LevelSearch(Agent):
    """The recommended agent where a repair is asked for.

    Args:
        env: the vector environment, whose judge has levels on the grid of its budget.
        importance: its mask on the budget is the start; see ``scores_of_levels``.
        seed: of the calibration stream.

    Attributes:
        levels: of the environment.
        choice: the policy, the level of each group, (groups,) int64.
        previous: the choice of the round before, (groups,) int64.
        sums: of the squares of the advantages, of the advantages, and their number, for each level
            of each group, (3, groups + 1, levels) float64; level 0 of the last is ``previous``.
    """

    saved_tensors = ("scores", "choice", "previous", "sums")
    saved_values = (*COUNTS, "round", "cursor")

    def __init__(
        self, env: VectorEnv[Any, Any, Any], importance: Importance, seed: int = 0
    ) -> None:
        super().__init__(env, None, seed)
        levels = self.env.judge.levels
        assert levels is not None
        self.levels = levels
        self.choice = levels.below(importance.mask(self.budget)[None])[0]
        self.previous = self.choice.clone()
        self.scores = torch.zeros(self.budget.units.n, dtype=torch.float64)
        most = max(len(group.kept) for group in levels.groups)
        self.sums = torch.zeros(3, len(levels.groups) + 1, most, dtype=torch.float64)
        self.round, self.cursor = 0, 0

    def mask(self) -> Tensor:
        """Returns the mask of the choice, with what the budget has left, (n,) uint8."""
        return self._on_budget(self.choice)

    def finalists(self) -> list[Tensor]:
        """Returns the masks of the last two choices."""
        return [self.mask(), self._on_budget(self.previous)]

    def draw(self) -> Tensor:
        """Returns the mask too: the policy is certain."""
        return self.mask()

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        """Tries some actions, and improves the policy at the end of a round."""
        tried = self._next_actions(self.env.num_envs - 1)
        choices = self.choice.repeat(self.env.num_envs, 1)  # (K, groups)
        for row, (group, level) in zip(choices[1:], tried, strict=True):
            if group == len(row):
                row.copy_(self.previous)
            else:
                row[group] = level
        losses = self._losses(self.levels.masks(choices))  # (K,)
        advantages = losses[0] - losses[1:]  # (K-1,)
        if self._can_learn(losses.isfinite(), least=2):
            for (group, level), advantage in zip(tried, advantages.tolist(), strict=True):
                if math.isfinite(advantage):
                    self.sums[:, group, level] += torch.tensor(
                        [advantage**2, advantage, 1]
                    ).double()
        self.steps += 1
        if self.steps >= self._end_of_round(total_steps):
            self._improve()
        own = {"rollout/best_loss": lowest(losses), "train/round": float(self.round)}
        return self._figures(losses, own)

    def _end_of_round(self, total_steps: int) -> int:
        """Returns the step at which the present round ends."""
        return round(total_steps * sum(SHARES[: self.round + 1]))

    def _next_actions(self, count: int) -> list[tuple[int, int]]:
        """Returns the next actions (group, level) in turn; neighbours share the layers before."""
        actions = self._actions()
        chosen = [actions[(self.cursor + i) % len(actions)] for i in range(count)]
        self.cursor = (self.cursor + count) % len(actions)
        return chosen

    def _actions(self) -> list[tuple[int, int]]:
        """Returns all actions of the round: the ends of the trust region, and the way back."""
        actions = []
        for group, level in enumerate(self.choice.tolist()):
            low, high = self._region(group)
            actions += [(group, end) for end in (low, high) if end != level]
        back = [] if torch.equal(self.previous, self.choice) else [(len(self.choice), 0)]
        return actions + back

    def _region(self, group: int) -> tuple[int, int]:
        """Returns the first and last level of the trust region of a group."""
        levels, level = self.levels.groups[group].kept, int(self.choice[group])
        radius = RADII[self.round] if len(levels) > _FEW else 1
        return max(0, level - radius), min(len(levels) - 1, level + radius)

    def _improve(self) -> None:
        """Moves to the best choice in the trust region, and starts the next round."""
        _, sums, count = self.sums
        if count[-1, 0] and sums[-1, 0] > 0:  # the choice before was the better one
            self.choice = self.previous.clone()
        else:
            rises = self._rises()
            self.previous = self.choice.clone()
            values = [self._values(group, rises[group]) for group in range(len(self.choice))]
            self.choice = best(self.levels, self.budget, values.__getitem__)
        self.sums.zero_()
        self.round, self.cursor = min(self.round + 1, len(SHARES) - 1), 0

    def _values(self, group: int, rises: Tensor) -> Tensor:
        """Estimates the rise of the loss at all levels from that of some, (levels,) each.

        It is infinite where nothing is known.
        """
        errors, level = self.levels.groups[group].errors, int(self.choice[group])
        values = torch.full((len(errors),), torch.inf, dtype=torch.float64)
        values[level] = 0
        for end in self._region(group):
            first, last = min(level, end), max(level, end)
            if first == last or not rises[end].isfinite():
                continue
            more = errors[first : last + 1] - errors[level]
            total = errors[end] - errors[level]
            part = more / total if total else torch.ones_like(more)
            values[first : last + 1] = rises[end] * part
            values[level] = 0
        return values

    def _rises(self) -> Tensor:
        """Estimates how much the loss rises at the levels that were tried, (groups, levels).

        It is infinite for the others. To keep more never raises the loss. What a few batches say of
        one group is drawn to the mean of all groups of its kind, the more the noisier it is (the
        estimator of James & Stein 1961, by the variance of each).
        """
        squares, sums, count = self.sums[:, :-1]
        levels = torch.arange(squares.shape[1])
        means = -sums / count  # (groups, levels), NaN where nothing was tried
        noise = (squares / count - means.square()).clamp(min=0) / (count - 1)  # of the means
        kinds = self.budget.units.kinds
        kind = torch.tensor([kinds.index(group.kind) for group in self.budget.units.groups])
        for k in range(len(kinds)):
            for side in (levels > self.choice[:, None], levels < self.choice[:, None]):
                alike = side & (kind == k)[:, None] & (count > 1)
                if alike.sum() > 2:
                    found, error = means[alike], noise[alike]
                    spread = (found.var() - error.mean()).clamp(min=0)
                    weight = spread / (spread + error).clamp(min=1e-300)
                    means[alike] = found.mean() + weight * (found - found.mean())
        fewer = levels > self.choice[:, None]
        rises = torch.where(fewer, means.clamp(min=0), means.clamp(max=0))
        return rises.where(count > 0, torch.inf)

    def _on_budget(self, choice: Tensor) -> Tensor:
        """Rounds a choice (groups,) to a mask on the budget, (n,) uint8."""
        return self.budget.round(scores_of_levels(self.levels, choice))


def scores_of_levels(levels: Levels, choice: Tensor) -> Tensor:
    """Scores units by levels: those that they keep first, then those removed last, (n,) float64.

    So a budget that leaves something keeps units in turn in all groups.
    """
    (mask,) = levels.masks(choice[None])
    scores = 2 * mask.double()
    for group, of_group in zip(levels.units.groups, levels.groups, strict=True):
        place = torch.arange(len(of_group.order), dtype=torch.float64) / len(of_group.order)
        scores[group.start + of_group.order] -= place
    return scores
