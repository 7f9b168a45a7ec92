"""The multipliers of several bounds at once: how much dearer each of them makes a unit."""

import torch
from torch import Tensor

from pgprune.budget.projection import shift

_STEPS = 100  # of Newton's method; a few are enough
_HALVINGS = 60  # of a step
_TOLERANCE = 1e-12  # of shares of a bound
_FLAT = 1e-9  # keeps a step finite where no unit is between kept and pruned


def shifts(
    z: Tensor, weight: Tensor, cost: Tensor, limit: Tensor, most: Tensor | None = None
) -> Tensor:
    """Computes how far bounds shift scores z, (n,), down to their projection clip(z - v, 0, 1).

    The projection minimises sum_i w_i (s_i - z_i)^2 / 2 subject to A s <= b and 0 <= s <= 1. Its
    Lagrangian has one multiplier for each bound, and s = clip(z - A^T lambda / w, 0, 1) is its
    minimum. The dual function is concave and smooth, with the gradient A s - b and a piecewise
    constant curvature, so projected Newton steps with a line search climb it.

    Args:
        z: scores, (n,) float64.
        weight: of the units in the sum of squares, (n,), positive.
        cost: A, (m, n), not negative.
        limit: b, (m,).
        most: a shift at which each unit stops, (n,); None for none.

    Returns:
        v, (n,), with which no bound is exceeded.
    """
    total = cost.sum(dim=1).clamp(min=1e-300)  # shares of bounds compare, their units do not
    share, target = cost / total[:, None], limit / total
    weight = weight / weight.sum()
    slope = share / weight  # (m, n), what a multiplier shifts

    def shifted(multiplier: Tensor) -> Tensor:
        moved = multiplier @ slope
        return moved if most is None else torch.minimum(moved, most)

    def dual(multiplier: Tensor) -> tuple[float, Tensor]:
        kept = (z - shifted(multiplier)).clamp(0, 1)
        over = share @ kept - target  # (m,)
        return float(weight @ (kept - z) ** 2 / 2 + multiplier @ over), over

    multiplier = z.new_zeros(len(cost))
    height, over = dual(multiplier)
    for _ in range(_STEPS):
        if bool((over <= _TOLERANCE).all()) and float((multiplier * over).abs().max()) < _TOLERANCE:
            break
        moved = shifted(multiplier)
        inside = (z > moved) & (z - moved < 1) & (True if most is None else moved < most)
        free = (multiplier > 0) | (over > 0)
        curvature = (share * inside) @ slope.T
        curvature += torch.eye(len(cost)).to(z) * (_FLAT * curvature.diagonal().max() + 1e-300)
        step = torch.zeros_like(multiplier)
        step[free] = torch.linalg.solve(curvature[free][:, free], over[free])
        for _ in range(_HALVINGS):
            next_multiplier = (multiplier + step).clamp(min=0)
            next_height, next_over = dual(next_multiplier)
            if next_height > height:
                break
            step = step / 2
        else:
            break  # no step climbs: this is the top within rounding
        multiplier, height, over = next_multiplier, next_height, next_over
    found = shifted(multiplier)
    # What rounding leaves above a bound goes by one more shift of all.
    rest = most if most is None else most - found
    more = [shift(z - found, row, float(b), rest) for row, b in zip(cost, limit, strict=True)]
    found = found + torch.stack(more).max()
    return found if most is None else torch.minimum(found, most)
