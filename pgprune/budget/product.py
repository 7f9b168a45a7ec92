"""The budget of kinds of unit whose numbers multiply: experts, and channels that all have.

A layer that keeps k of E experts and c of F channels has k (r + c p) + c q parameters: r of an
expert alone, such as its row of the router, p of a channel of one expert, q of a channel that
belongs to none of them. Of all pairs within the budget, the one is kept whose smaller share, k / E
or c / F, is the largest. So no channel would still fit, and both shares are near the root of the
share of parameters.
"""

import math
from collections.abc import Collection
from fractions import Fraction

from pgprune.errors import PruningError
from pgprune.masking.units import PruningUnits, kinds_multiply

_LINE = 8  # channels, where the dense number is a multiple: fills 16 bytes in half precision


def check_product(kinds: Collection[str], budget: str, scope: str, targets: bool) -> None:
    """Checks that a budget can hold experts and channels.

    Raises:
        PruningError: layers may differ, kinds may trade, or there are targets.
    """
    if not kinds_multiply(kinds):
        return
    if targets:
        raise PruningError(
            "a target adds up what units cost, but numbers of experts and of their channels "
            "multiply; give --prune-rate in its place, or choose --granularity experts"
        )
    if budget != "per-kind" or scope != "uniform":
        raise PruningError(
            f"budget {budget} and scope {scope} add up what units cost, but numbers of experts and "
            "of their channels multiply; choose budget per-kind and scope uniform, or granularity "
            "experts"
        )


def kept_shares(units: PruningUnits, keep: Fraction, round_to: int) -> dict[str, Fraction]:
    """Finds the share of each kind that every layer keeps.

    Args:
        units: experts and channels.
        keep: the share of the parameters that may stay.
        round_to: what the number of channels is a multiple of. It is one of 8 as well, or of their
            common divisor with the dense number, for grouped products of matrices.

    Raises:
        PruningError: layers with experts differ, or too little would be left.
    """
    shapes = {(s.experts, s.channels, s.expert_cost, s.channel_cost) for s in units.shapes}
    several = {shape for shape in shapes if shape[0]}
    if len(several) > 1:
        raise PruningError(
            "layers of the model have different numbers of experts or channels already, so that "
            "they cannot keep equal shares; choose --granularity experts and --scope global"
        )
    shape = next(shape for shape in units.shapes if shape.experts)
    most, width, each = shape.experts, shape.channels, shape.expert_channel_cost
    alone, apart = shape.expert_cost - width * each, shape.channel_cost - most * each
    step = math.lcm(round_to, math.gcd(_LINE, width), units.channel_block)
    least, least_width = units.least.view(-1, 2).amax(0).tolist()
    fewest = max(1, math.ceil(least_width * units.channel_block / step)) * step

    def parameters(experts: int, channels: int) -> int:
        return experts * (alone + channels * each) + channels * apart

    room = keep * parameters(most, width)
    pairs = list[tuple[int, int]]()
    for experts in range(least, most + 1):
        fitting = (room - experts * alone) / (experts * each + apart)
        channels = min(width, math.floor(fitting)) // step * step
        if channels >= fewest:
            pairs.append((experts, channels))
    if not pairs:
        share = 1 - parameters(least, fewest) / parameters(most, width)
        largest = math.floor(1e4 * share) / 1e4
        remedy = f"choose a rate of at most {largest:g}" if largest > 0 else "keep less of a kind"
        raise PruningError(
            f"prune rate {float(1 - keep):.6g} leaves less than {least} experts of "
            f"{fewest} channels, the least that a layer keeps; {remedy}, or choose granularity "
            "layers"
        )

    def shares(pair: tuple[int, int]) -> tuple[Fraction, Fraction]:
        return Fraction(pair[0], most), Fraction(pair[1], width)

    best = max(pairs, key=lambda pair: (min(shares(pair)), parameters(*pair)))
    return dict(zip(units.kinds, shares(best), strict=True))
