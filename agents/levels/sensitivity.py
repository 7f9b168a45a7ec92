"""How much the loss rises with the error of each group, from what a few actions say of it."""

import torch
from torch import Tensor


def sensitivities(sums: Tensor, kinds: Tensor) -> Tensor:
    """Estimates sensitivities by least squares, each drawn to the mean of its kind.

    A few batches say little of one group and much of all: an estimate is drawn to the mean the more
    the noisier it is (the estimator of James & Stein 1961, by the variance of each). A group that
    was not tried has the mean. To prune more never lowers the loss.

    Args:
        sums: over the actions of each group, of their number, the squared rise of its error, that
            times the rise of the loss, and the squared rise of the loss, (4, groups) float64.
        kinds: of the groups, (groups,) int64.

    Returns:
        The rise of the loss by that of the error, (groups,) float64; 1 for a kind without actions.
    """
    count, errors, products, rises = sums
    found = products / errors  # (groups,), NaN where nothing was tried
    noise = (rises - products * found).clamp(min=0) / (count - 1) / errors  # variances
    result = torch.ones_like(found)
    for kind in kinds.unique():
        of_kind = kinds == kind
        tried = of_kind & (errors > 0)
        if not tried.any():
            continue
        mean = found[tried].mean()
        result[of_kind] = mean
        result[tried] = found[tried]
        sure = tried & (count > 1)
        if sure.sum() > 2:
            spread = (found[sure].var() - noise[sure].mean()).clamp(min=0)
            weight = spread / (spread + noise[sure]).clamp(min=1e-300)
            result[sure] = mean + weight * (found[sure] - mean)
    return result.clamp(min=0)
