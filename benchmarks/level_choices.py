"""Which units a level keeps, and how tokens count: ways held against each other, as a table.

    python benchmarks/level_choices.py --model smollm2 --calibration c4

Equal shares of each layer and kind, with weights refitted on the dense model's inputs. Units are
removed one by one by what the refitted others cannot give (*greedy*, as levels do), the same with
the error of each output times the gain of the norm behind it (*gain*), or those with the least
ridge leverage and energy go (*leverage*, as MoDeGPT does). A token's error counts relative to its
hidden state after the block (*relative*, as in levels), or as it is.
"""

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from fine_problem import add_model, fine_problem
from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.masking.units import PruningUnits
from pgprune.methods.modegpt import first_values, leverages
from pgprune.models.residual import adds_its_output, in_the_stream
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.projection import Projection
from pgprune.repair.refit import refit_layers
from pgprune.repair.removal import removals
from pgprune.repair.repair import Repair, repaired
from pgprune.repair.solution import Solution
from pgprune.utils.markdown import grid
from pgprune.utils.progress import phase


@dataclass
class Way:
    """What one way keeps, (n,), and its weights."""

    mask: Tensor
    repair: Repair = field(default_factory=Repair)


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_model(parser)
    add("--evaluation", default="builtin")
    add("--prune-rate", type=float, default=0.25)
    add("--evaluation-windows", type=int, default=24, help="of each text (default 24)")
    options = parser.parse_args()
    problem = fine_problem(options, options.prune_rate)
    data = DataConfig(evaluation=options.evaluation, evaluation_windows=options.evaluation_windows)
    texts = evaluation_windows(data, problem.tokenizer)
    ways = fit(problem, problem.stream.head(options.windows))
    rows = [["dense", *perplexities(problem, Way(problem.units.ones()), texts)]]
    with phase("ways", len(ways), "ways") as done:
        for number, (name, way) in enumerate(ways.items(), 1):
            rows.append([name, *perplexities(problem, way, texts)])
            done.reach(number)
    print(grid(["order, tokens", *texts], rows))


def fit(problem: Problem, windows: Tensor) -> dict[str, Way]:
    """Chooses and refits the units of every way, in one pass over the layers."""
    lm, units = problem.lm, problem.units
    share = 1 - problem.budget.prune_rate
    numbers = {
        (group.layer, group.kind): round(share * (group.stop - group.start))
        for group in units.groups
    }
    ways = dict[str, Way]()

    def solve(projection: Projection) -> Solution:
        if (group := projection.group) is None:
            return {}
        for name, order, squares in orders(projection, units):
            way = ways.setdefault(name, Way(units.ones()))
            kept = torch.zeros(squares.units, dtype=torch.bool)
            kept[order[: numbers[group.layer, group.kind]].cpu()] = True
            way.mask[group.start : group.stop] = kept
            key, weight = (group.layer, group.projection), squares.refit(kept)
            way.repair.weights[key] = squares.in_place(weight).to("cpu", lm.dtype)
            if (bias := squares.bias(weight)) is not None:
                way.repair.biases[key] = bias.to("cpu", lm.dtype)
        return {}  # the model stays dense

    refit_layers(lm, units.ones(), windows, solve, "projection")
    return ways


def orders(
    projection: Projection, units: PruningUnits
) -> Iterator[tuple[str, Tensor, LeastSquares]]:
    """Yields the name of a way, its order of units, the last to go first, and its problem."""
    group, lm = projection.group, projection.lm
    assert group is not None
    for tokens, relative in (("relative", True), ("as they are", False)):
        squares = replace(projection, relative=relative).least_squares(DAMPING)
        yield f"greedy, {tokens}", _greedy(squares), squares
        if not adds_its_output(lm.family, projection.kind):
            gained = _with_gains(replace(projection, relative=relative))
            yield f"greedy with gain, {tokens}", _greedy(gained), squares
        if group.kind == "values":
            order = first_values(squares, units, group)
        else:
            order = leverages(squares).argsort(descending=True, stable=True)
        yield f"leverage, {tokens}", order, squares


def _greedy(squares: LeastSquares) -> Tensor:
    return torch.tensor([unit for unit, _ in removals(squares)]).flip(0)


def _with_gains(projection: Projection) -> LeastSquares:
    """Builds the problem of a projection whose outputs are multiplied by the norm's gains."""
    linear, family = projection.linear, projection.lm.family
    moments = SecondMoments.of(linear.weight)
    for inputs, targets, weights in projection._weighted():
        moments.add(inputs, targets, weights)
    weight = in_the_stream(projection.seen.module, family, projection.kind, linear.weight)
    moments.set_outputs(weight)
    return projection._problem(moments, weight, damping=DAMPING, order=projection._order)


def perplexities(problem: Problem, way: Way, texts: dict[str, Tensor]) -> list[str]:
    """Evaluates a way on each text."""
    with repaired(problem.lm, way.repair):
        losses = (problem.lm.losses(way.mask[None], ids).mean() for ids in texts.values())
        return [f"{math.exp(float(loss)):.2f}" for loss in losses]


if __name__ == "__main__":
    main()
