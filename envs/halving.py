"""Successive halving: many candidates are judged on few tokens, the best of them on more.

Candidates share their windows, so what differs between windows cancels in the difference of two
losses, and a few windows are enough to tell the bad ones. Each round adds windows to those of the
last one: no candidate is evaluated on a window twice.

Source: Jamieson & Talwalkar 2016, Algorithm 1 (arXiv 1502.07943), with tokens as the resource.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.losses.windows import window_losses

TOKENS = (2048, 16384, 131072)
KEEP = 1 / 8  # the tokens grow by 8, so each round costs about the same


class Survivors(NamedTuple):
    """The candidates of the last round, the best one first.

    Attributes:
        candidates: (k, n).
        indices: of the candidates among all, (k,) int64.
        losses: of each window, (k, N) float64 on the host.
    """

    candidates: Tensor
    indices: Tensor
    losses: Tensor


def halving(
    candidates: Tensor,
    judge: Callable[[Tensor, Tensor], Tensor],
    windows: Tensor,
    tokens: Sequence[int] = TOKENS,
    keep: float = KEEP,
) -> Survivors:
    """Finds the best of many candidates.

    Args:
        candidates: masks or whatever the judge takes, (K, n).
        judge: candidates (k, n) and token ids (B, T) to losses (k, B), such as ``env.evaluate``.
            The model's meter counts what it evaluates: ``halving_tokens``, and with ``loss="kl"``
            each window that is read once more, for the dense model.
        windows: token ids, (N, T), of which the first are read.
        tokens: that a candidate is judged on by the end of each round, growing.
        keep: share of the candidates that goes on to the next round, rounded up. A single one ends
            the rounds, as there is nothing left to decide.

    Returns:
        The candidates that are left in the order of their mean losses, in which those that are not
        numbers come last and the first candidate is the best of equal ones.

    Raises:
        PruningError: no candidates, or rounds that cannot be.
    """
    length = windows.shape[1]
    _check(len(candidates), windows, tokens, keep)
    indices = torch.arange(len(candidates))
    losses = torch.empty(len(candidates), 0, dtype=torch.float64)
    for number, (left, total) in enumerate(_rounds(len(candidates), tokens, keep)):
        indices, losses = indices[:left], losses[:left]
        rows = candidates[indices.to(candidates.device)]  # (k, n)
        more = windows[losses.shape[1] : total // length]
        label = f"round {number + 1} of {len(tokens)}, {len(rows)} candidates"
        found = window_losses(partial(judge, rows), more, label=label)  # (k, windows)
        losses = torch.cat([losses, found], dim=1)
        order = losses.mean(dim=1).nan_to_num(torch.inf, torch.inf).argsort(stable=True)
        indices, losses = indices[order], losses[order]
    return Survivors(candidates[indices.to(candidates.device)], indices, losses)


def halving_tokens(count: int, tokens: Sequence[int] = TOKENS, keep: float = KEEP) -> int:
    """Counts the tokens that ``halving`` asks of the model for a number of candidates."""
    cost = before = 0
    for left, total in _rounds(count, tokens, keep):
        cost += left * (total - before)
        before = total
    return cost


def _rounds(count: int, tokens: Sequence[int], keep: float) -> Iterator[tuple[int, int]]:
    """Yields the candidates of each round, and the tokens that they are judged on by its end."""
    for total in tokens:
        yield count, total
        count = math.ceil(keep * count)
        if count == 1:
            return


def _check(count: int, windows: Tensor, tokens: Sequence[int], keep: float) -> None:
    length, shown = windows.shape[1], ", ".join(map(str, tokens))
    if count == 0:
        raise PruningError("there are no candidates to halve; give at least one")
    if not 0 < keep <= 1:
        raise PruningError(f"keep {keep} is no share of the candidates; choose above 0, at most 1")
    if not tokens or any(b <= a for a, b in zip([0, *tokens], tokens, strict=False)):
        raise PruningError(f"tokens ({shown}) do not grow from round to round; put them in order")
    if any(total % length for total in tokens):
        raise PruningError(
            f"tokens ({shown}) are not all whole windows of {length}; choose multiples of {length}"
        )
    if tokens[-1] > windows.numel():
        raise PruningError(
            f"the last round reads {tokens[-1]} tokens, and the windows have {windows.numel()}; "
            "give more windows, or ask for fewer tokens"
        )
