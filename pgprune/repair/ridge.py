"""Ridge regression in closed form, for few observations of many features."""

import torch
from torch import Tensor

_FOLDS = 5  # of cross-validation
_PENALTIES = 10.0 ** torch.arange(-4, 5, dtype=torch.float64)  # times the mean eigenvalue


def ridge(features: Tensor, targets: Tensor, together: int = 1) -> Tensor:
    """Fits targets by a linear function with an intercept and a squared penalty on its slope.

    Of nine penalties, from four decades below to four above the mean eigenvalue of the Gram matrix,
    cross-validation (5 folds) chooses the one that predicts left-out observations best. Everything
    is solved in the space of observations: M of them cost M^3, and p features only M^2 p.

    Args:
        features: (M, p) float64.
        targets: (M,) float64, in no particular order.
        together: number of neighbouring observations that are left out together, such as the two
            of an antithetic pair.

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
    """Solves for all penalties: (M, p), (M,) -> slopes (penalties, p).

    With the eigenvectors U and eigenvalues e of X X^T, the slope of the penalty l is
    X^T (X X^T + l)^-1 y = X^T U diag(1 / (e + l)) U^T y, so one decomposition serves all.
    """
    centred = features - features.mean(0)  # (M, p)
    values, vectors = torch.linalg.eigh(centred @ centred.T)  # e, (M,) and U, (M, M)
    projected = vectors.T @ (targets - targets.mean())  # (M,)
    mean = values.mean().clamp(min=torch.finfo(values.dtype).tiny)
    shrunk = projected / (values + mean * _PENALTIES.to(values)[:, None])  # (penalties, M)
    return shrunk @ vectors.T @ centred
