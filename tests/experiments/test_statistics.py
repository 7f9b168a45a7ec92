"""Statistics over runs and tasks: as rliable computes them, and as their definitions say."""

import itertools

import numpy as np
import pytest

from pgprune.experiments.statistics import (
    estimate,
    improvement,
    interquartile_mean,
    intervals,
    paired_difference,
    performance_profile,
)

ONE = np.array(
    [
        [0.91, 0.40, 0.75],
        [0.85, 0.55, 0.70],
        [0.97, 0.20, 0.81],
        [0.88, 0.46, 0.64],
        [0.93, 0.61, 0.79],
    ]
)
OTHER = np.array(
    [
        [0.82, 0.52, 0.70],
        [0.90, 0.35, 0.66],
        [0.79, 0.44, 0.58],
        [0.85, 0.48, 0.83],
        [0.76, 0.30, 0.69],
    ]
)
THRESHOLDS = np.array([0.4, 0.5, 0.7, 0.85])


# What rliable 1.2.0 gives for these scores (with pandas 2): metrics.aggregate_iqm,
# metrics.probability_of_improvement and create_performance_profile; intervals of
# get_interval_estimates with 50,000 and 20,000 resamples, which its seeds move by up to 0.007.
@pytest.mark.parametrize(
    ("scores", "mean", "low", "high"),
    [(ONE, 0.7311111111, 0.686, 0.7633), (OTHER, 0.6666666667, 0.6244, 0.7089)],
)
def test_interquartile_means_are_those_of_rliable(scores, mean, low, high):
    found = estimate(interquartile_mean, scores)
    assert found.value == pytest.approx(mean, abs=1e-9)
    assert (found.low, found.high) == pytest.approx((low, high), abs=3e-3)


def test_improvement_is_that_of_rliable():
    found = estimate(improvement, ONE, OTHER)
    assert found.value == pytest.approx(0.72, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((0.52, 0.897), abs=0.015)
    assert improvement(OTHER, ONE) == pytest.approx(0.28, abs=1e-12)


def test_profiles_are_those_of_rliable():
    expected = {"one": [13, 12, 8, 4], "other": [13, 11, 6, 1]}  # of 15 runs
    for scores, counts in ((ONE, expected["one"]), (OTHER, expected["other"])):
        found = performance_profile(scores, THRESHOLDS)
        assert found == pytest.approx(np.array(counts) / 15)
    low, high = intervals(lambda scores: performance_profile(scores, THRESHOLDS), ONE)
    assert low == pytest.approx(np.array([11, 10, 6, 2]) / 15)
    assert high == pytest.approx(np.array([15, 14, 10, 5]) / 15)


def test_interquartile_mean_drops_a_quarter_at_each_end_rounded_down():
    scores = np.array([[9.0, 1.0], [3.0, 100.0], [-50.0, 4.0], [5.0, 7.0], [2.0, 6.0]])
    middle = sorted(scores.ravel())[2:-2]
    assert interquartile_mean(scores) == pytest.approx(sum(middle) / len(middle))


def test_improvement_counts_pairs_within_tasks_and_ties_half():
    one, other = np.array([[1.0, 5.0], [2.0, 5.0]]), np.array([[1.0, 9.0], [0.0, 5.0], [3.0, 1.0]])
    shares = []
    for task in (0, 1):
        pairs = list(itertools.product(one[:, task], other[:, task]))
        shares.append(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))
    assert improvement(one, other) == pytest.approx(sum(shares) / 2)


def test_resamples_stay_within_their_tasks():
    scores = np.array([[0.0, 10.0], [1.0, 11.0]])
    seen = []
    intervals(lambda drawn: seen.append(drawn) or drawn.mean(axis=(-2, -1)), scores)
    assert set(np.unique(seen[0][:, :, 0])) == {0.0, 1.0}
    assert set(np.unique(seen[0][:, :, 1])) == {10.0, 11.0}
    # The tasks are drawn apart: all four pairs come together in a run.
    assert len(np.unique(seen[0].reshape(-1, 2), axis=0)) == 4


def test_a_paired_difference_is_free_of_what_the_pairs_share():
    shared = np.array([3.0, -2.0, 7.0, 0.5])
    found = paired_difference(shared - 0.1, shared)
    assert found == pytest.approx((-0.1, -0.1, -0.1))
    differences = np.array([-0.2, -0.1, 0.3])
    found = paired_difference(differences, np.zeros(3))
    means = sorted(sum(draw) / 3 for draw in itertools.product(differences, repeat=3))
    assert found.value == pytest.approx(0.0, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((means[0], means[-1]))  # 1/27 beyond 2.5 %
