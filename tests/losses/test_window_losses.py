"""Perplexity from the losses of windows: its standard error, and how many windows are enough."""

import math

import pytest
import torch

from pgprune.losses.windows import (
    FEWEST_WINDOWS,
    STANDARD_ERROR,
    perplexity_of,
    window_losses,
    windows_needed,
)


def two_masks(input_ids: torch.Tensor) -> torch.Tensor:
    """Losses that are a window's first id under the first mask, and ten times that."""
    first = input_ids[:, 0].double()
    return torch.stack([first, 10 * first])  # (2, B)


def windows_of(first_ids: torch.Tensor) -> torch.Tensor:
    return first_ids[:, None].expand(-1, 4)


def random_losses(n: int, deviation: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 + deviation * torch.randn(n, generator=generator, dtype=torch.float64)


def test_the_standard_error_is_that_of_the_exponential_of_a_mean():
    trials = random_losses(2000 * 50, 0.5).view(2000, 50)
    spread = float(trials.mean(dim=1).exp().std())  # over repetitions
    assert perplexity_of(trials[0]).error == pytest.approx(spread, rel=0.25)
    assert perplexity_of(trials[0]).value == float(trials[0].mean().exp())


def test_a_single_window_has_no_standard_error_and_a_loss_that_is_no_number_is_not_hidden():
    assert math.isnan(perplexity_of(torch.ones(1, dtype=torch.float64)).error)
    assert math.isnan(perplexity_of(torch.tensor([1.0, math.nan])).value)
    assert perplexity_of(torch.tensor([1e4, 1e4])).value == math.inf


@pytest.mark.parametrize("deviation", [0.1, 0.2, 0.4])
def test_windows_are_enough_when_the_error_is_one_percent(deviation):
    losses = random_losses(5000, deviation)
    found = window_losses(two_masks, windows_of(losses), batch_size=8, until_sure=True)
    assert found.shape[0] == 2 and torch.equal(found[1], 10 * found[0]), "all masks read the same"
    value, error = perplexity_of(found[0])
    assert error <= STANDARD_ERROR * value
    before = found[0, :-8]  # not earlier than that
    assert len(before) < windows_needed(before)


def test_all_windows_are_read_where_they_are_not_enough_or_nothing_is_to_be_decided():
    windows = windows_of(random_losses(100, 0.5))
    assert window_losses(two_masks, windows, until_sure=True).shape == (2, 100)
    assert window_losses(two_masks, windows_of(torch.ones(100))).shape == (2, 100)


@pytest.mark.parametrize("loss", [2.0, math.nan, math.inf])
def test_windows_that_do_not_differ_or_have_no_loss_are_few(loss):
    windows = windows_of(torch.full((100,), loss))
    assert window_losses(two_masks, windows, until_sure=True).shape == (2, FEWEST_WINDOWS)
