"""Sensitivities: exact without noise, drawn together with it."""

import torch
from torch import Tensor

from pgprune.agents.levels.sensitivity import sensitivities

KINDS = torch.tensor([0] * 20 + [1] * 20)


def sums_of(true: Tensor, tries: int, noise: float, seed: int = 0) -> Tensor:
    """Actions that raise the error by 1 to 2, (4, groups)."""
    generator = torch.Generator().manual_seed(seed)
    more = 1 + torch.rand(tries, len(true), generator=generator).double()
    rises = true * more + noise * torch.randn(tries, len(true), generator=generator).double()
    ones = torch.ones_like(more)
    return torch.stack([part.sum(0) for part in (ones, more**2, more * rises, rises**2)])


def test_they_are_exact_without_noise():
    true = 1 + torch.arange(40).double()
    torch.testing.assert_close(sensitivities(sums_of(true, 3, 0), KINDS), true)


def test_what_was_not_tried_has_the_mean_of_its_kind():
    true = torch.tensor([2.0, 4.0, 9.0] + [0.0] * 17 + [0.0] * 20).double()
    sums = sums_of(true, 2, 0)
    sums[:, 3:] = 0
    found = sensitivities(sums, KINDS)
    torch.testing.assert_close(found[3:20], torch.full((17,), 5.0).double())
    assert bool((found[20:] == 1).all())  # errors alone decide


def test_noisy_ones_are_drawn_to_the_mean():
    generator = torch.Generator().manual_seed(1)
    true = 5 + 0.3 * torch.randn(40, generator=generator).double()
    sums = sums_of(true, 4, 3.0)
    plain = sums[2] / sums[1]
    drawn = sensitivities(sums, KINDS)
    assert (drawn - true).square().mean() < 0.5 * (plain - true).square().mean()


def test_pruning_never_helps():
    assert sensitivities(sums_of(torch.full((40,), -1.0).double(), 2, 0), KINDS).min() == 0
