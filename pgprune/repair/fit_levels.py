"""Fits levels: the order of removal of each group and the best weights at a few counts."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pgprune.masking.masked_lm import MaskedLM
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.levels import GroupLevels, Levels, path_of
from pgprune.repair.projection import Projection
from pgprune.repair.refit import refit_layers
from pgprune.repair.removal import removals
from pgprune.repair.solution import Solution
from pgprune.utils.files import make_folder, tensor_bytes, write_file
from pgprune.utils.progress import phase


@torch.no_grad()
def fit_levels(
    lm: MaskedLM,
    windows: Tensor,
    kept: Sequence[Tensor],
    folder: Path,
    damping: float = DAMPING,
) -> Levels:
    """Solves the weights of all levels, layer by layer, on the dense model's inputs.

    Units of a group are removed one by one, that with the least error of the refitted others first
    (Hassibi & Stork 1993), so a level keeps a part of what the one before it keeps.

    Args:
        lm: the frozen model; its units are heads, channels or both.
        windows: calibration token ids, (N, T).
        kept: units kept at each level of each group, (levels,) int64, falling from all to 0.
        folder: new or from an interrupted call; gets a file for each layer.
        damping: relative to the mean square of an input.

    Raises:
        PruningError: no calibration text, or activations that overflow.
        OSError: the disk is full or refuses.
    """
    make_folder(folder)
    groups, tensors = list[GroupLevels](), dict[str, Tensor]()
    last, before = lm.units.kinds[-1], lm.meter.tokens

    def solve(projection: Projection) -> Solution:
        if (group := projection.group) is None:
            return {}
        layer, kind = group.layer, group.kind
        problem = projection.least_squares(damping)
        values = windows.numel() * projection.linear.out_features
        levels = _levels_of(problem, kept[len(groups)], values)
        groups.append(levels)
        tensors.update(level_tensors(problem, levels, kind, lm.dtype))
        if kind == last:
            write_file(path_of(folder, layer), tensor_bytes(tensors))
            tensors.clear()
        return {}  # the model stays dense

    with phase("levels"):
        refit_layers(lm, lm.units.ones(), windows, solve, "projection", relative=True)
        levels = Levels(lm.units, groups, folder, lm.device, lm.meter.tokens - before)
        levels.save()
    return levels


def level_tensors(
    problem: LeastSquares, levels: GroupLevels, kind: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Solves the weights of all levels but the first, which is the dense one.

    Args:
        problem: of all inputs of the projection.
        levels: its levels.
        kind: of its units.
        dtype: of the weights.

    Returns:
        Weights (D, kept inputs) and biases (D,) on the CPU, as the file of a layer names them.
    """
    tensors = dict[str, Tensor]()
    for count in levels.kept[1:].tolist():
        units = torch.zeros(problem.units, dtype=torch.bool)
        units[levels.order[:count]] = True
        weight = problem.refit(units)  # (D, inputs)
        if (bias := problem.bias(weight)) is not None:
            tensors[f"{kind}.{count}.bias"] = bias.to("cpu", dtype)
        inputs = torch.zeros_like(weight[:1]).index_fill_(1, problem.inputs(units), 1)
        kept_inputs = problem.in_place(inputs)[0].bool()
        few = problem.in_place(weight)[:, kept_inputs]  # (D, kept inputs)
        tensors[f"{kind}.{count}.weight"] = few.to("cpu", dtype).contiguous()
    return tensors


def _levels_of(problem: LeastSquares, kept: Tensor, values: int) -> GroupLevels:
    """Finds the order of removal, and the mean error at each number of kept units, (levels,).

    Args:
        problem: whose errors are relative to states.
        kept: (levels,).
        values: of all states.
    """
    removed, rises = zip(*removals(problem), strict=True)
    errors = torch.tensor([0.0, *rises], dtype=torch.float64).cumsum(0)  # by removed units
    order = torch.tensor(removed).flip(0)
    return GroupLevels(kept, order, errors[len(order) - kept] / values, problem.width)
