"""Ridge regression in closed form, for few observations of many features."""

import torch
from torch import Tensor

_FOLDS = 5
_PENALTIES = 10.0 ** torch.arange(-4, 5, dtype=torch.float64)  # times the mean eigenvalue


def ridge(features: Tensor, targets: Tensor, together: int = 1) -> Tensor:
    """Fits targets by a linear function with an intercept and a squared penalty on its slope.

    The penalty is the one of nine, four decades below to four above the mean eigenvalue of the
    Gram matrix, whose fits predict left-out observations best (5-fold cross-validation). Everything
    is solved in the space of observations, whose number M costs M^3, and features only M^2 p.

    Args:
        features: (M, p) float64.
        targets: (M,) float64, in no particular order.
        together: so many neighbouring observations are left out together, because they belong
            together, as the two of an antithetic pair.

    Returns:
        The slope, (p,) float64.
    """
    fold = torch.arange(len(targets), device=targets.device) // together % _FOLDS
    errors = torch.zeros(len(_PENALTIES), dtype=torch.float64, device=targets.device)
    for index in range(_FOLDS):
        train = fold != index
        slopes = _slopes(features[train], targets[train])  # (penalties, p)
        held = features[~train] - features[train].mean(0)
        error = targets[~train] - targets[train].mean() - slopes @ held.T  # (penalties, held)
        errors += error.square().sum(1)
    return _slopes(features, targets)[int(errors.argmin())]


def _slopes(features: Tensor, targets: Tensor) -> Tensor:
    """The slopes of all penalties: (M, p), (M,) -> (penalties, p)."""
    centred = features - features.mean(0)  # (M, p)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    projected = vectors.T @ (targets - targets.mean())  # (M,)
    mean = values.mean().clamp(min=torch.finfo(values.dtype).tiny)
    shrunk = projected / (values + mean * _PENALTIES.to(values)[:, None])  # (penalties, M)
    return shrunk @ vectors.T @ centred
