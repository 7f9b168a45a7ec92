"""Tyr-the-Pruner: evolves how much each layer keeps, among levels that are pruned beforehand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from tempfile import gettempdir

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.budget.problem import TOKENS_PER_TIMESTEP, Problem
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.methods.common.learning import stopwatch
from pgprune.metrics.base import FINE
from pgprune.repair.fit import choose_and_refit
from pgprune.repair.fit_levels import level_tensors
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.levels import GroupLevels, Levels, path_of
from pgprune.repair.sweep import Sweep
from pgprune.utils.files import saving, tensor_bytes, write_file
from pgprune.utils.progress import track
from pgprune.utils.temporary import temporary

Counts = tuple[int, ...]
"""Units that each group keeps."""

_ROUNDS = 4  # as published, and so are the next four
_STEP = 1 / 8  # of a group, between levels of the first round; half of it in each later round
_AROUND = 4  # levels on each side of the present one
_BATCHES = 16  # in which units are removed from one level to the next; heads at once
_SHIFTS = 4  # of an offspring, at most
_STAGES = (1, 4, 16)  # calibration batches that the candidates of a generation are judged on
_TOP = 512  # tokens that the KL divergence tells apart, as in rewards
_DRAWS = 10  # for each offspring, until there is another one


@method("tyr", FINE, budgets=("per-kind",), random=True, learns=True)
def tyr(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Shifts sparsity between layers by evolution, among refitted weights at a grid of levels.

    All layers keep equal shares at first. In each of four rounds every projection is pruned to up
    to four levels more and four levels less than it keeps, an eighth of its units apart at first,
    and half of the last distance in each later round (``prune_to_levels``). Each reads what the
    layers before it give at the level that they keep: the expected error. Then a parent evolves:
    an offspring moves one to four levels, each from one layer to another of the same kind. The
    candidates are judged by the KL divergence of the dense model's predictions from theirs, many on
    one batch, the best quarter on four, the best eighth and the parent on 16; the best is the next
    parent. What ships are the levels of the last round.

    Rounds, levels, shifts, the score and the order of the steps are those of the released code.
    Theirs: query heads are pruned singly, and both projections of a layer read the layer as it was;
    128 offspring, 50 generations a round, judged on 2,048, 16,384 and 131,072 tokens by the 8,192
    most likely tokens (210 M tokens in all); 4 M tokens of FineWeb-Edu in windows of 4,096 for
    least squares. Ours: a kv group is one unit; attention is refitted before its MLP is read; a
    level goes on from the one before it; there are as many generations as ``learning_timesteps``
    pay for, besides the passes for least squares, on batches of the calibration stream, and with
    none the shares stay equal; 512 tokens are told apart; biases are fitted too, where there are
    any.

    Published perplexities, WikiText-2 in windows of 4,096 tokens at 12.5, 25, 37.5 and 50 %:
    LLaMA-2-7B 5.84, 7.51, 10.29, 16.17 (dense 5.12); LLaMA-3.1-8B 7.41, 10.38, 18.09, 30.89 (5.84).

    Source: Li et al. 2025 (Tyr-the-Pruner, arXiv 2503.09657; AMD-AGI/Tyr-the-Pruner), after OSSCAR
    and EvoPress.

    Options: ``learning_timesteps``, ``tyr_offspring``.

    Returns:
        The mask, the refitted weights, and the cost of learning; its steps are generations.

    Raises:
        PruningError: a budget by layer, the repair fails, or temporary files cannot hold levels.
    """
    if problem.budget.scope != "global":
        raise PruningError(
            f"method tyr searches how much each layer keeps, which scope {problem.budget.scope} "
            "fixes; leave out --scope"
        )
    lm, units, budget = problem.lm, problem.units, problem.budget
    random, notes, generations = Random(seed), stopwatch(problem), generations_for(problem, config)
    problem.stream.seek(0)
    # Which units are kept does not matter here, so rounding any scores gives equal shares.
    equal = budget.local().round(torch.zeros(units.n))[None]
    parent: Counts = tuple(units.kept_counts(equal)[0].int().tolist())
    scratch = Path(gettempdir())
    with saving(scratch), temporary(scratch / "tyr", directory=True) as folder:
        for number in range(_ROUNDS):
            first, last = (-(-generations * n // _ROUNDS) for n in (number, number + 1))
            if number and first == last:
                continue  # no search, for which these levels would be
            grid = Grid.around(parent, budget, number)
            levels = prune_to_levels(lm, windows, parent, grid, folder)
            with lm.refitted(levels.weight):
                for _ in track(range(first, last), f"round {number + 1}", unit="generations"):
                    children = offspring(parent, grid, config.tyr_offspring, random)
                    parent = select(problem, levels, children, parent)
        (choice,) = choices(levels, [parent])
        (mask,), repair = levels.masks(choice[None]), levels.repair(choice)
    return Pruned(mask, repair=repair, notes=notes(generations))


@dataclass(frozen=True)
class Grid:
    """The numbers of units that levels keep, by group.

    Attributes:
        kinds: of the groups.
        low: the fewest units of a level.
        high: the most.
        step: from one level to the next, the same in all groups of a kind.
        kept: all levels and the dense one, (levels,) int64 each, falling.
    """

    kinds: list[str]
    low: list[int]
    high: list[int]
    step: list[int]
    kept: list[Tensor]

    @classmethod
    def around(cls, counts: Counts, budget: Budget, number: int) -> "Grid":
        """Makes the levels around those kept now, for a round by its number from 0."""
        units, grid = budget.units, cls([], [], [], [], [])
        steps = {}
        for kind in units.kinds:
            sizes = [g.stop - g.start for g in units.groups if g.kind == kind]
            chunk = budget.chunk(kind)
            units_apart = _STEP / 2**number * sum(sizes) / len(sizes)
            steps[kind] = max(1, round(units_apart / chunk)) * chunk
        for group, count in zip(units.groups, counts, strict=True):
            size, step = group.stop - group.start, steps[group.kind]
            low = count - min(_AROUND, count // step) * step
            high = count + min(_AROUND, (size - count) // step) * step
            grid.kinds.append(group.kind)
            grid.low.append(low)
            grid.high.append(high)
            grid.step.append(step)
            kept = {size, *range(low, high + 1, step)}
            grid.kept.append(torch.tensor(sorted(kept, reverse=True)))
        return grid


def generations_for(problem: Problem, config: MethodConfig) -> int:
    """Counts the generations that an agent's timesteps pay for; maybe none."""
    batch = problem.stream.batch_size * problem.stream.sequence_length
    candidates = _candidates(config.tyr_offspring)
    passes = sum((each + 1) * n for each, n in zip(candidates, _STAGES, strict=True))  # dense too
    return config.learning_timesteps * TOKENS_PER_TIMESTEP // (passes * batch)


def prune_to_levels(
    lm: MaskedLM, windows: Tensor, counts: Counts, grid: Grid, folder: Path
) -> Levels:
    """Prunes all projections to all levels, layer by layer on what those before give.

    Args:
        lm: the frozen model.
        windows: calibration token ids, (N, T).
        counts: the level that layers have when those after them are pruned.
        grid: the levels of all groups.
        folder: gets a file for each layer.

    Raises:
        PruningError: the repair fails.
        OSError: the disk is full or refuses.
    """
    groups, tensors = list[GroupLevels](), dict[str, Tensor]()

    def choose(squares: LeastSquares, group: Group) -> Tensor:
        index = len(groups)
        levels = levels_of(squares, grid.kept[index], 1 if group.kind == "heads" else _BATCHES)
        groups.append(levels)
        tensors.update(level_tensors(squares, levels, group.kind, lm.dtype))
        if group.kind == lm.units.kinds[-1]:
            write_file(path_of(folder, group.layer), tensor_bytes(tensors))
            tensors.clear()
        kept = torch.zeros(squares.units, dtype=torch.bool)
        kept[levels.order[: counts[index]]] = True
        return kept

    choose_and_refit(lm, windows, choose)
    return Levels(lm.units, groups, folder, lm.device)


def levels_of(squares: LeastSquares, kept: Tensor, batches: int) -> GroupLevels:
    """Removes units of a projection from level to level, in batches of those of the least score.

    A unit u with the weights W_u scores half the rise of the error without it, and what its weights
    give of the targets: tr(W_u A_uu^-1 W_u^T) / 2 + tr(W_u B_u^T), for the inverse A of the second
    moments and those B of targets and inputs. The others are refitted after each batch.

    Args:
        squares: the least squares of the projection.
        kept: units kept at each level, (levels,) int64, falling from all of them.
        batches: from one level to the next.
    """
    sweep, removed = Sweep(squares), list[int]()
    errors = [sweep.error]
    for before, after in pairwise(kept.tolist()):
        batch = math.ceil((before - after) / batches)
        while (left := int(sweep.kept.sum()) - after) > 0:
            scores = sweep.costs() / 2 + sweep.contributions()  # infinite for removed units
            out = scores.argsort(stable=True)[: min(batch, left)]
            sweep.toggle(out)
            removed += out.tolist()
        errors.append(sweep.error)
    never = sweep.kept.nonzero().flatten().tolist()
    order = torch.tensor([*never, *reversed(removed)])
    return GroupLevels(kept, order, torch.tensor(errors).double(), squares.width)


def offspring(parent: Counts, grid: Grid, count: int, random: Random) -> list[Counts]:
    """Draws different offspring of a parent; fewer than ``count`` where there are not so many."""
    found: list[Counts] = []
    for _ in range(_DRAWS * count):
        child = list(parent)
        for _ in range(min(random.randint(1, _SHIFTS), random.randint(1, _SHIFTS))):
            _shift(child, grid, random)
        if tuple(child) not in (parent, *found):
            found.append(tuple(child))
        if len(found) == count:
            break
    return found


def _shift(counts: list[int], grid: Grid, random: Random) -> None:
    """Moves one level from a random group to another of its kind, in place, if there are any."""
    groups = range(len(counts))
    more = [g for g in groups if counts[g] + grid.step[g] <= grid.high[g]]
    if not more:
        return
    into = random.choice(more)
    alike = [g for g in groups if g != into and grid.kinds[g] == grid.kinds[into]]
    fewer = [g for g in alike if counts[g] - grid.step[g] >= grid.low[g]]
    if fewer:
        counts[random.choice(fewer)] -= grid.step[into]
        counts[into] += grid.step[into]


def select(problem: Problem, levels: Levels, children: list[Counts], parent: Counts) -> Counts:
    """Finds the best of some candidates and their parent, in stages on more and more batches.

    ``problem.lm`` has the levels as its refitted weights.
    """
    if not children:
        return parent
    left = children
    for stage, (batches, size) in enumerate(zip(_STAGES, _candidates(len(left)), strict=True)):
        last = stage == len(_STAGES) - 1
        left = [*left[: size - last], *[parent] * last]
        masks = levels.masks(choices(levels, left))  # (K, n)
        total = torch.zeros(len(left), dtype=torch.float64)
        for _ in range(batches):
            ids = problem.stream.next()
            dense = problem.lm.dense_predictions(ids, _TOP)
            total += problem.lm.divergences(masks, ids, dense).double().mean(1).cpu()
        order = total.nan_to_num(torch.inf, torch.inf).argsort(stable=True)
        left = [left[i] for i in order.tolist()]
    return left[0]


def choices(levels: Levels, counts: Sequence[Counts]) -> Tensor:
    """Finds the levels that keep given numbers of units, (K, groups) int64."""
    rows = [
        [int((of_group.kept > n).sum()) for of_group, n in zip(levels.groups, row, strict=True)]
        for row in counts
    ]
    return torch.tensor(rows)


def _candidates(count: int) -> tuple[int, int, int]:
    """Counts the candidates of each stage; the parent is one of the last."""
    return count, math.ceil(count / 4), math.ceil(count / 8) + 1
