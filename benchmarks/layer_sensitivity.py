"""Measures what the loss says of each layer that errors do not, as two Markdown tables.

    python benchmarks/layer_sensitivity.py --model smollm2 --calibration c4

The first table has, for each layer, the KL divergence from the dense model when a third of the
levels of one kind is gone in this layer alone, over the error of the hidden states that this
leaves: how much an error of one size costs there. Beside it is what a metric keeps of the layer,
which compares errors as they are, and how far the squares of the hidden states in front of the
layer are from even: their mean over their median, over tokens.

The second compares attention that is pruned as a whole with value dimensions and channels. A
layer whose value dimensions are all pruned needs no queries and keys either. The first row leaves
these where they are, as budgets of value dimensions do; in the second, such a layer frees their
parameters as well, so that more is kept elsewhere. Each choice has the least sum of losses for
its parameters, where the loss of a level is measured for whole attention blocks and in proportion
to the error elsewhere.
"""

import argparse
import tempfile
from functools import cache
from pathlib import Path

import torch
from fine_problem import add_model, fine_problem
from torch import Tensor

from pgprune.agents.levels.knapsack import cheapest
from pgprune.budget.level_grid import grid as level_grid
from pgprune.budget.problem import Problem
from pgprune.metrics import METRICS
from pgprune.repair.fit_levels import fit_levels
from pgprune.repair.levels import Levels
from pgprune.utils.markdown import grid

_SHARES = (0.1, 0.2, 0.3, 0.4)
_METRIC, _ONE_SHOT = "stream-error", 0.2
_FEW = 16  # windows whose hidden states are looked at
_TOP = 50  # predictions of the dense model that are kept


class Losses:
    """KL divergence of choices of levels from the dense model, on windows of text (N, T)."""

    def __init__(self, problem: Problem, levels: Levels, windows: Tensor) -> None:
        self.lm, self.levels, self.windows = problem.lm, levels, windows
        self.dense = self.lm.dense_predictions(windows, _TOP)

    def __call__(self, choice: Tensor) -> float:
        """Evaluates a level of each group, (groups,)."""
        masks = self.levels.masks(choice[None])
        with self.lm.refitted(self.levels.weight):
            return float(self.lm.divergences(masks, self.windows, self.dense).mean())

    @cache  # noqa: B019 (one object for the whole script)
    def sensitivity(self, group: int) -> float:
        """Computes the loss over the error where a third of the levels of one group is gone."""
        errors = self.levels.groups[group].errors
        middle = len(errors) // 3
        return self._alone(group, middle) / float(errors[middle])

    def of_group(self, group: int) -> Tensor:
        """Estimates the losses at the levels of one group, (levels,) float64."""
        errors = self.levels.groups[group].errors
        losses = self.sensitivity(group) * errors
        if self.levels.units.groups[group].kind == "values":
            losses[-1] = max(self._alone(group, len(errors) - 1), float(losses[-2]))
        return losses

    def _alone(self, group: int, level: int) -> float:
        choice = torch.zeros(len(self.levels.groups), dtype=torch.int64)
        choice[group] = level
        return self(choice)


@torch.no_grad()
def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--judged", type=int, default=12, help="other windows, for the losses")
    options = parser.parse_args()
    problem = fine_problem(options)
    windows = problem.stream.head(options.windows + options.judged)
    with tempfile.TemporaryDirectory() as folder:
        kept, _ = level_grid(problem.budget)
        levels = fit_levels(problem.lm, windows[: options.windows], kept, Path(folder))
        losses = Losses(problem, levels, windows[options.windows :])
        print(f"{by_layer(problem, losses, windows)}\n", flush=True)
        values = [losses.of_group(group) for group in range(len(levels.groups))]
        rows = [
            [name, *(_cell(problem, losses, values, share, whole) for share in _SHARES)]
            for name, whole in (("without q and k", False), ("with q and k", True))
        ]
    heads = [f"{share:.0%}" for share in _SHARES]
    print(grid(["an attention block without values is pruned", *heads], rows))


def by_layer(problem: Problem, losses: Losses, windows: Tensor) -> str:
    """Makes the table of layers: sensitivities, what a metric keeps, and uneven hidden states."""
    units, budget = problem.units, problem.budget.with_rate(_ONE_SHOT)
    mask = METRICS[_METRIC](problem.lm, windows, budget, 0).mask(budget)
    kept = units.kept_shares(mask[None].double())[0].view(units.layers, -1)  # (L, kinds)
    uneven = torch.zeros(units.layers)
    for layer, before, _ in problem.lm.states(windows[:_FEW]):
        squares = before.float().square().mean(-1)  # (b, T)
        uneven[layer] = squares.mean() / squares.median()  # of the last chunk
    rows = []
    for layer, shares in enumerate(kept.tolist()):
        groups = range(layer * len(units.kinds), (layer + 1) * len(units.kinds))
        rows.append([str(layer), *(f"{losses.sensitivity(group):.1f}" for group in groups)])
        rows[-1] += [*(f"{share:.0%}" for share in shares), f"{float(uneven[layer]):,.1f}"]
    return grid(
        [
            "layer",
            *(f"loss by error, {kind}" for kind in units.kinds),
            *(f"{_METRIC} keeps of {kind} at {_ONE_SHOT:.0%}" for kind in units.kinds),
            "mean by median of squares",
        ],
        rows,
    )


def _cell(problem: Problem, losses: Losses, values: list[Tensor], share: float, whole: bool) -> str:
    """Finds the best choice for a share of all parameters; returns its loss and whole blocks."""
    units, costs, none = problem.units, list[Tensor](), list[int]()
    for index, (group, levels) in enumerate(zip(units.groups, losses.levels.groups, strict=True)):
        cost, shape = levels.kept * int(units.cost[group.start]), units.shapes[group.layer]
        if group.kind == "values":
            none.append(index)
            cost[-1] -= shape.kv_heads * shape.query_key_cost * whole
        costs.append(cost)
    queries_and_keys = sum(each.kv_heads * each.query_key_cost for each in units.shapes)
    capacity = units.prunable - int(share * (units.prunable + queries_and_keys))
    choice = torch.tensor(cheapest(values, costs, capacity))
    gone = sum(int(losses.levels.groups[i].kept[choice[i]]) == 0 for i in none)
    return f"{losses(choice):.4f} ({gone})"


if __name__ == "__main__":
    main()
