"""benchmarks/against_reinforce.py: the walk along the grid, the cells, and what the tables say."""

import math

import pytest

from helpers.experiments_toy import ROOT, load, record
from pgprune.experiments.plan import BenchmarkConfig
from pgprune.experiments.scores import Scores

CONFIG = BenchmarkConfig(seeds=3)


@pytest.fixture(scope="module")
def against():
    return load(ROOT / "benchmarks" / "against_reinforce.py")


def walk(against, losses):
    """Measures the open cells of the grid until there are none; returns the steps, in order."""
    found, order = [], []
    while cells := against.open_grid(Scores(found), ["builtin"], CONFIG):
        for cell in cells:
            assert (cell.task, cell.seed) == ("builtin:0.4", 0)
            step = next(step for step in against.GRID if against.reinforce(step) == cell.method)
            order.append(step)
            found.append(record(cell.method, cell.task, 0, [9.0, losses(step)]))
    return order, against.best_steps(Scores(found))


def test_the_grid_is_walked_until_the_best_has_neighbours(against):
    assert walk(against, lambda step: abs(step - 0.032)) == ([*against.FIRST], {"builtin": 0.032})
    order, best = walk(against, lambda step: -step)
    assert (order, best) == ([*against.FIRST, 0.128], {"builtin": 0.128})
    order, best = walk(against, lambda step: step)
    assert order[3:] == [0.008, 0.004, 0.002] and best == {"builtin": 0.002}


def test_both_agents_have_the_same_tasks_and_seeds(against):
    cells = against.matches({"builtin": 0.032}, ["builtin"], CONFIG, [*against.ROUNDS])
    every = {cell.method for cell in cells}
    steps = {against.reinforce(step) for step in (0.016, 0.032, 0.064)}
    assert every == {*steps, *against.AUTO.values(), *against.REPAIRED.values()}
    assert len(cells) == (6 + 2) * 3 * 3
    assert sum("total-timesteps=" in agent for agent in every) == 4


def test_a_cell_takes_the_step_with_the_best_mean_of_the_most_seeds(against):
    losses = {0.032: [1.0, 3.0, 3.0], 0.064: [2.0, 2.0, 2.0], 0.016: [0.5]}
    found = [
        record(against.reinforce(step), "m:0.4", seed, [9.0, loss])
        for step, of_seeds in losses.items()
        for seed, loss in enumerate(of_seeds)
    ]
    scores = Scores(found)
    assert against.best_steps(scores) == {"m": 0.016}
    assert against.mean_losses(scores, "m:0.4") == {0.032: pytest.approx(7 / 3), 0.064: 2.0}
    assert against.cell_steps(scores) == {"m:0.4": 0.064}


def test_tokens_count_from_the_start_of_the_other_agent(against):
    found = []
    reinforce, auto = against.reinforce(0.032), against.REPAIRED["all"]
    for agent, start, end in ((reinforce, 40, 240), (auto, 60, 245)):
        own = record(agent, "m:0.4", 0, [9.0, 3.0], masked={"text": 9.0})
        own["curve"][0]["tokens"], own["tokens"] = start, end
        found.append(own)
    row = against.tables(Scores(found)).splitlines()[-1]
    assert "| 1.025 |" in row, "205 of 200, as what it spends on its own start counts"


def test_tables_pair_the_runs_of_a_seed(against):
    found = []
    for seed in range(3):
        for agent, perplexity, looks in (
            (against.reinforce(0.032), 8.0 + seed, 10),
            (against.AUTO["a tenth"], 4.0 + seed / 2, 1),
        ):
            shown = {"masked": {"text": perplexity}}
            found.append(record(agent, "m:0.4", seed, [9.0] * looks + [3.0], **shown))
    text = against.tables(Scores(found))
    assert "| m:0.4 | – | – | – | – | 3.000 | – | – | 0.032 |" in text
    half = f"{math.log(0.5):+.3f}"
    mean = math.exp(sum(math.log(8 + seed) for seed in range(3)) / 3)
    row = next(line for line in text.splitlines() if half in line)
    assert row == (
        f"| m:0.4 | {mean:.2f} | {mean / 2:.2f} | {half} [{half}, {half}] (3) | 0.100 | – | – | – |"
    )
