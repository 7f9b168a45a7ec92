"""Every gradient estimator by enumeration (Invariant 2), and the options it goes with."""

from itertools import product

import pytest
import torch

from pgprune import PruningError
from pgprune.agents.estimators import (
    BASELINES,
    SCORES,
    advantages,
    complete,
    gradient,
    masks_from,
    moving_average,
    score_function,
)
from pgprune.agents.reinforce import ReinforceConfig


def all_masks(n: int) -> torch.Tensor:
    return torch.tensor(list(product([0, 1], repeat=n)), dtype=torch.float64)  # (2^n, n)


def problem_of(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep probabilities inside (0, 1) and a loss for each of the 2^n masks, any loss."""
    generator = torch.Generator().manual_seed(n)
    s = 0.1 + 0.8 * torch.rand(n, generator=generator, dtype=torch.float64)
    return s, 5 * torch.rand(2**n, generator=generator, dtype=torch.float64)


def probability(masks: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return torch.where(masks.bool(), s, 1 - s).prod(dim=-1)


def exact_gradient(s: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """The gradient of the expected loss, by automatic differentiation."""
    s = s.clone().requires_grad_()
    (probability(all_masks(len(s)), s) @ losses).backward()
    return s.grad


def expected_estimate(s, table, count, score, baseline, previous, window) -> torch.Tensor:
    """The mean of the estimate over all 2^(n N_s) tuples of masks."""
    masks, total = all_masks(len(s)), torch.zeros_like(s)
    for indices in product(range(len(masks)), repeat=count):
        drawn, losses = masks[list(indices)], table[list(indices)]
        average = moving_average(previous, losses, window)
        estimate = gradient(drawn, advantages(losses, baseline, average), s, score)
        total += probability(drawn, s).prod() * estimate
    return total


@pytest.mark.parametrize(("n", "count"), [(1, 2), (2, 2), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("score", SCORES)
def test_every_estimator_by_enumeration(n, count, score, baseline):
    s, losses = problem_of(n)
    window = 5
    expected = exact_gradient(s, losses)
    if baseline == "moving-average":
        expected = (1 - 1 / (count * window)) * expected
    if score == "preconditioned":
        expected = (s * (1 - s)).sqrt() * expected * count / (count - 1)
    actual = expected_estimate(s, losses, count, score, baseline, previous=2.7, window=window)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def pair_probability(pairs: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Of both masks of a pair, (2, n): u < s makes one, 1 - u <= s the other."""
    both, differ = (2 * s - 1).clamp(min=0), torch.minimum(s, 1 - s)
    neither = (1 - 2 * s).clamp(min=0)
    kept = pairs.sum(dim=0)
    return torch.where(kept == 2, both, torch.where(kept == 1, differ, neither)).prod()


def expected_estimate_of_pairs(s, table, count, score, baseline, previous) -> torch.Tensor:
    """The mean of the estimate over all 4^(n N_s / 2) tuples of antithetic pairs."""
    masks, total = all_masks(len(s)), torch.zeros_like(s)
    half = count // 2
    for indices in product(range(len(masks)), repeat=count):
        drawn, losses = masks[list(indices)], table[list(indices)]
        likely = [pair_probability(drawn[[k, k + half]], s) for k in range(half)]
        average = moving_average(previous, losses, window=5)
        advantage = advantages(losses, baseline, average)
        estimate = gradient(drawn, advantage, s, score, "antithetic")
        total += torch.stack(likely).prod() * estimate
    return total


@pytest.mark.parametrize(("n", "count"), [(1, 2), (2, 2), (3, 2), (4, 2), (1, 4), (2, 4)])
@pytest.mark.parametrize("baseline", ["moving-average", "none"])
@pytest.mark.parametrize("score", SCORES)
def test_antithetic_pairs_by_enumeration(n, count, score, baseline):
    """DisARM is unbiased, and no baseline scales it: what both losses share cancels."""
    s, losses = problem_of(n)
    expected = exact_gradient(s, losses)
    if score == "preconditioned":
        expected = (s * (1 - s)).sqrt() * expected * count / (count - 1)
    actual = expected_estimate_of_pairs(s, losses, count, score, baseline, previous=2.7)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_antithetic_masks_are_likely_as_the_enumeration_has_it():
    s = torch.tensor([0.0, 0.2, 0.5, 0.7, 1.0], dtype=torch.float64)
    u = ((torch.arange(1000) + 0.5) / 1000).double()[:, None].expand(1000, 5)
    first, second = masks_from(u, s, "antithetic").double().split(1000)
    torch.testing.assert_close(first.mean(0), s)
    torch.testing.assert_close(second.mean(0), s)
    torch.testing.assert_close((first != second).double().mean(0), 2 * torch.minimum(s, 1 - s))
    assert masks_from(torch.zeros(1, 5).double(), s, "antithetic").tolist() == [
        [0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1],
    ]


@pytest.mark.parametrize("baseline", ["moving-average", "none"])
@pytest.mark.parametrize("score", SCORES)
def test_the_dense_loss_of_the_batch_is_no_bias(score, baseline):
    """Batches of equal chance shift all losses, the unpruned model's too, by the same amount."""
    s, losses = problem_of(3)
    factor = 0.9 if baseline == "moving-average" else 1.0
    if score == "preconditioned":
        factor = factor * 2 * (s * (1 - s)).sqrt()
    for batch in (-10.0, 0.0, 7.0):
        dense = losses[-1] + batch
        controlled = (losses + batch) - dense
        actual = expected_estimate(s, controlled, 2, score, baseline, previous=0.3, window=5)
        expected = factor * exact_gradient(s, losses)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_a_pair_with_a_loss_that_is_no_number_is_left_out_as_a_whole():
    finite = torch.tensor([True, True, False, True])
    assert complete(finite, "independent").tolist() == [True, True, False, True]
    assert complete(finite, "antithetic").tolist() == [False, True, False, True]


@pytest.mark.parametrize("previous", [-3.0, 0.0, 40.0])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_the_moving_average_scales_the_gradient_whatever_was_before(previous, window):
    s, losses = problem_of(3)
    actual = expected_estimate(s, losses, 2, "paper", "moving-average", previous, window)
    expected = (1 - 1 / (2 * window)) * exact_gradient(s, losses)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("baseline", ["moving-average", "none"])
def test_one_mask_a_step_is_enough_for_the_papers_score(baseline):
    s, losses = problem_of(4)
    actual = expected_estimate(s, losses, 1, "paper", baseline, previous=1.0, window=5)
    factor = 0.8 if baseline == "moving-average" else 1
    torch.testing.assert_close(actual, factor * exact_gradient(s, losses), rtol=0, atol=1e-12)


def test_the_moving_average_is_equation_8():
    losses = torch.tensor([3.0, 5.0], dtype=torch.float64)
    assert moving_average(10.0, losses, 5) == 4 / 5 * 10 + 1 / (2 * 5) * (3 + 5)


def test_leave_one_out_is_the_mean_of_the_others():
    losses = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert advantages(losses, "leave-one-out", 100.0).tolist() == [-3, -1.5, 4.5]


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_zero_where_nothing_is_random(score):
    """Where s is 0 or 1 every mask agrees with it, and no division by zero may show."""
    s = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    masks = torch.tensor([[0, 1, 0], [0, 1, 1]], dtype=torch.uint8)
    factor = 2 if score == "paper" else 1
    expected = [[0, 0, -factor], [0, 0, factor]]
    assert score_function(masks, s, score).tolist() == expected


@pytest.mark.parametrize(
    "options", [{"score": "preconditioned"}, {"score": "paper", "baseline": "leave-one-out"}]
)
def test_what_divides_by_the_masks_but_one_refuses_one_mask(options):
    with pytest.raises(PruningError, match="needs masks_per_step of 2 or more, got 1"):
        ReinforceConfig(masks_per_step=1, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"masks_per_step": 3, "sampling": "antithetic"}, "3 does not consist of the pairs"),
        ({"baseline": "leave-one-out", "sampling": "antithetic"}, "takes masks for independent"),
        ({"control": "dense", "sampling": "antithetic"}, "differences of sampling antithetic"),
        ({"control": "dense", "baseline": "leave-one-out"}, "differences of baseline leave-one"),
    ],
)
def test_what_does_not_go_together_is_refused(options, says):
    with pytest.raises(PruningError, match=says):
        ReinforceConfig(**options)


def test_one_mask_a_step_needs_the_papers_score():
    ReinforceConfig(masks_per_step=1, score="paper")
    ReinforceConfig(masks_per_step=1, score="paper", baseline="none")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("score", "papr"),
        ("baseline", "mean"),
        ("schedule", "linear"),
        ("baseline_start", "one"),
        ("sampling", "mirrored"),
        ("control", "batch"),
        ("masks_per_step", 0),
        ("window", 0),
    ],
)
def test_wrong_options_are_refused_by_name(option, value):
    with pytest.raises(PruningError, match=f"{option} must be .* not '?{value}'?"):
        ReinforceConfig(**{option: value})
