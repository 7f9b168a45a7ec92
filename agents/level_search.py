"""Searches among levels: how much each layer keeps of each kind, with the weights that are shipped.

The policy is one level for each (layer, kind). A step evaluates the present choice and choices that
prune more of one group only, all on one batch: the difference of their losses is the advantage of
that action, almost without the noise of the batch. The loss of a choice is taken to be

    constant + sum over groups g of s_g e_g(level of g),

where e_g is the squared error that a level leaves in the hidden states, known from fitting it, and
the sensitivity s_g is what the actions so far say of it. After a round of steps the policy is
improved at once for all groups: the best choice within a trust region is a knapsack under the
budget. Later rounds look around the answer, and sensitivities rest on the actions of all rounds.

This is ours. Choosing levels of refitted weights for each layer is Tyr-the-Pruner's (Li et al.
2025, arXiv 2503.09657), which searches by evolution.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from pgprune.agents.base import COUNTS, Agent, lowest
from pgprune.agents.levels.sensitivity import sensitivities
from pgprune.agents.levels.start import best, nearest, scaled
from pgprune.metrics import Importance
from pgprune.repair.levels import Levels

SHARES = (0.4, 0.3, 0.3)
"""Of the steps, by round."""

RADII = (4, 3, 2)
"""Of the trust region in steps of the grid, by round. A kv group is tried alone."""

_KEPT = 1000  # of what levels keep: more than all that they do not keep is worth
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
        sums: over the actions of each group, of their number, the squared rise of its error, that
            times the rise of the loss, and the squared rise of the loss, (4, groups) float64.
        back: over the returns to ``previous`` in this round, the rise of the loss, () float64.
    """

    saved_tensors = ("choice", "previous", "sums", "back")
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
        self.sums = torch.zeros(4, len(levels.groups), dtype=torch.float64)
        self.back = torch.zeros((), dtype=torch.float64)
        self.round, self.cursor = 0, 0

    def start_from(self, learned: Mapping[str, Tensor], mask: Tensor) -> None:
        """Starts from what a search of the same levels has learned at another prune rate.

        Its mask is scaled to the budget, and then improved by its sensitivities within a trust
        region. This move stands for the first round: a run that has few actions left and moves
        once more than others ends above its start. The scaled one is the choice before, which
        actions compare with.

        Args:
            learned: the tensors of its ``state``.
            mask: its answer, (n,).
        """
        self.sums = learned["sums"].clone()
        kept = self.budget.units.kept_counts(mask[None])[0].tolist()
        self.choice = nearest(self.levels, self.budget, scaled(kept, self.budget))
        self.round = 1
        self._move()

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
        if self._can_learn(losses.isfinite(), least=2):
            for action, rise in zip(tried, (losses[1:] - losses[0]).tolist(), strict=True):
                if math.isfinite(rise):
                    self._learn_of(*action, rise)
        self.steps += 1
        if self.steps >= round(total_steps * sum(SHARES[: self.round + 1])):
            self._improve()
        own = {"rollout/best_loss": lowest(losses), "train/round": float(self.round)}
        return self._figures(losses, own)

    def _learn_of(self, group: int, level: int, rise: float) -> None:
        """Adds the rise of the loss by an action to what is known."""
        if group == len(self.choice):
            self.back += rise
            return
        errors = self.levels.groups[group].errors
        more = float(errors[level] - errors[self.choice[group]])
        self.sums[:, group] += torch.tensor([1, more**2, more * rise, rise**2]).double()

    def _next_actions(self, count: int) -> list[tuple[int, int]]:
        """Returns the next actions (group, level) in turn; neighbours share the layers before."""
        actions = self._actions()
        chosen = [actions[(self.cursor + i) % len(actions)] for i in range(count)]
        self.cursor = (self.cursor + count) % len(actions)
        return chosen

    def _actions(self) -> list[tuple[int, int]]:
        """Returns the actions of a round: the far end of each trust region, and the way back."""
        actions = []
        for group, level in enumerate(self.choice.tolist()):
            low, high = self._region(group)
            actions.append((group, high if high > level else low))
        back = [] if torch.equal(self.previous, self.choice) else [(len(self.choice), 0)]
        return actions + back

    def _region(self, group: int) -> tuple[int, int]:
        """Returns the first and last level of the trust region of a group."""
        levels, level = self.levels.groups[group].kept, int(self.choice[group])
        radius = RADII[self.round] if len(levels) > _FEW else 1
        return max(0, level - radius), min(len(levels) - 1, level + radius)

    def _improve(self) -> None:
        """Moves to the best choice in the trust region, and starts the next round."""
        if self.back < 0:  # the choice before was the better one
            self.choice = self.previous
        self._move()
        self.back.zero_()
        self.round, self.cursor = min(self.round + 1, len(SHARES) - 1), 0

    def _move(self) -> None:
        """Moves to the best choice in the trust region, by what is known of sensitivities."""
        self.previous = self.choice.clone()
        units = self.budget.units
        kinds = torch.tensor([units.kinds.index(group.kind) for group in units.groups])
        rises = sensitivities(self.sums, kinds)
        self.choice = best(self.levels, self.budget, lambda group: self._values(group, rises))

    def _values(self, group: int, rises: Tensor) -> Tensor:
        """Estimates the loss at the levels of the trust region, (levels,); infinite elsewhere."""
        low, high = self._region(group)
        errors = self.levels.groups[group].errors
        values = torch.full_like(errors, torch.inf)
        values[low : high + 1] = rises[group] * errors[low : high + 1]
        return values

    def _on_budget(self, choice: Tensor) -> Tensor:
        """Rounds a choice (groups,) to a mask on the budget, (n,) uint8."""
        return self.budget.round(scores_of_levels(self.levels, choice))


def scores_of_levels(levels: Levels, choice: Tensor) -> Tensor:
    """Scores units by levels: those that they keep first, then those removed last, (n,) float64.

    So a budget that leaves something keeps units in turn in all groups.
    """
    (mask,) = levels.masks(choice[None])
    scores = _KEPT * mask.double()
    for group, of_group in zip(levels.units.groups, levels.groups, strict=True):
        place = torch.arange(len(of_group.order), dtype=torch.float64) / len(of_group.order)
        scores[group.start + of_group.order] -= place
    return scores
