"""What is made of a benchmark's records: scores, tables, figures and the page."""

import json
import math

import numpy as np
import pytest

from helpers.experiments_toy import AGENTS, TASKS, record, records
from pgprune.errors import PruningError
from pgprune.experiments.cells import RANDOM
from pgprune.experiments.plan import BenchmarkConfig
from pgprune.experiments.records import read_records
from pgprune.experiments.report import failures_list
from pgprune.experiments.score_plots import plot_all
from pgprune.experiments.score_tables import report, tables
from pgprune.experiments.scores import Scores, curve_at

CONFIG = BenchmarkConfig()


@pytest.fixture
def output(tmp_path):
    """The directory of a benchmark with these records and a torn line."""
    lines = [json.dumps(one) for one in records()]
    (tmp_path / "benchmark.jsonl").write_text("\n".join(lines) + '\n{"method": "au')
    return tmp_path


@pytest.fixture
def scores(output):
    return Scores(read_records(output / "benchmark.jsonl"))


def test_a_score_is_the_share_of_the_way_from_random_masks_to_the_best_known(scores):
    for task, ends in TASKS.items():
        assert scores.ends[task] == {seed: pytest.approx(ends) for seed in range(3)}
    assert scores.of("auto") == pytest.approx(np.array([[0.9, 0.9], [0.91, 0.91], [0.92, 0.92]]))
    assert scores.of("reinforce", 0.0) == pytest.approx(np.zeros((3, 2)), abs=1e-9)
    assert scores.of("reinforce", 0.25)[0] == pytest.approx([0.125, 0.125])
    assert scores.ranked == list(AGENTS)
    assert scores.mean("reinforce").value == pytest.approx(0.51)


def test_the_best_known_loss_is_of_the_same_seed_as_the_batch_is():
    lower = record("reinforce", "model:0.3", 1, [5.0, 1.0])
    scores = Scores([*records(), lower])
    assert [best for _, best in scores.ends["model:0.3"].values()] == pytest.approx([3.0, 1.0, 3.0])
    assert scores.of("auto")[:, 0] == pytest.approx([0.9, 0.455, 0.92])


def test_the_later_record_of_a_cell_counts(output):
    (first,) = Scores(read_records(output / "benchmark.jsonl")).losses("auto", "model:0.3")[:1]
    assert first == 3.2
    assert len(read_records(output / "benchmark.jsonl")) == len(TASKS) * 3 * (1 + len(AGENTS))


def test_an_agent_that_lacks_a_task_is_shown_but_not_scored(scores):
    some = [*records(), record("td3", "model:0.3", 0, [5.0, 4.9])]
    lost = {"method": "td3", "task": "model:0.5:layers", "repair": "none", "error": "no"}
    some += [lost | {"seed": seed} for seed in (0, 1)]
    found = Scores(some)
    assert found.ranked == scores.ranked
    text = tables(found, some, CONFIG)
    assert "| td3 | – | 4.900 | – | 3 | 2,000 | 1 |" in text
    assert "- td3 on model:0.5:layers: no (seed 0, 1)" in text


def test_only_seeds_of_all_tasks_are_scored():
    lacking = ("reinforce", "model:0.3", 1)
    some = [one for one in records() if (one["method"], one["task"], one["seed"]) != lacking]
    assert Scores(some).seeds("reinforce") == [0, 2]
    assert Scores(some).of("reinforce").shape == (2, 2)


def test_without_random_masks_there_are_tables_but_no_scores():
    some = [one for one in records() if one["method"] != RANDOM]
    found = Scores(some)
    assert found.ranked == [] and found.ends == {}
    assert "No agent has runs on all tasks, and random masks on them, yet." in tables(
        found, some, CONFIG
    )


def test_curves_are_linear_between_looks():
    run = record("auto", "model:0.3", 0, [4.0, 3.0, 2.0])
    assert [curve_at(run, "loss", part) for part in (0, 0.25, 1)] == [4.0, 3.5, 2.0]
    assert curve_at(run, "seconds", 0.75) == 2.5


def test_agents_are_compared_seed_by_seed(scores):
    found, pairs = scores.differences("auto", "reinforce")["model:0.3"]
    values = []
    for seed in range(3):
        one, other = (scores.runs(a, "model:0.3")[seed] for a in ("auto", "reinforce"))
        values.append(math.log(one["perplexity"]["text"] / other["perplexity"]["text"]) / 2)
    assert pairs == 3 and found.value == pytest.approx(sum(values) / 3)
    assert (found.low, found.high) == pytest.approx((min(values), max(values)))
    assert found.high < 0
    text = tables(scores, records(), CONFIG)
    assert f"| model:0.3 | {found.value:+.4f} | [" in text and "| better | 3 |" in text
    swapped = BenchmarkConfig(recommended="reinforce", against="auto")
    text = tables(scores, records(), swapped)
    assert f"| model:0.3 | {-found.value:+.4f} | [" in text and "| worse | 3 |" in text
    assert "minus that of" not in tables(scores, records(), BenchmarkConfig(against="evolution"))


def test_the_tables_are_made_of_the_records(scores):
    text = tables(scores, records(), CONFIG)
    assert text.startswith("Best on average: auto, score 0.910 [")
    assert "; the next is reinforce, 0.510 [" in text
    assert "| 3.180 ± 0.020 | 4.360 ± 0.040 | 3 | 2,000 | 3 |" in text
    assert "| random masks | 0 | 5.000 ± 0.100 | 8.000 ± 0.100 | – | – | 3 |" in text
    assert "| dense | 5.000 | 6.000 | 5.000 | 6.000 |" in text
    assert "- auto: population 10\n" in text


def test_a_perplexity_that_is_no_number_is_infinite():
    some = [one | {"perplexity": {"text": None, "code": 20.0}} for one in records()]
    assert "| auto | ∞ | 20.00 ± 0.00 | ∞ |" in tables(Scores(some), some, CONFIG)


def test_the_page_is_renewed_between_its_markers_and_has_the_figures(output, tmp_path, painted):
    pytest.importorskip("matplotlib")
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("Before.\n<!-- benchmark -->\nold\n<!-- end -->\nAfter.\n")
    said = report(BenchmarkConfig(output=str(output), into=str(page)))
    assert said.startswith("Best on average: auto") and "\n" not in said
    text = page.read_text()
    assert "old" not in text and text.endswith("<!-- end -->\nAfter.\n")
    names = ("learning_curves", "learning_curves_seconds", "scores", "profiles", "improvement")
    for name in names:
        assert f"](plots/{name}.png)" in text
        assert (page.parent / "plots" / f"{name}.png").stat().st_size > 10_000


def test_figures_of_one_run_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    one = [each for each in records(seeds=1) if each["method"] in (RANDOM, "auto")]
    drawn = {path.stem for path in plot_all(Scores(one), tmp_path)}
    assert drawn == {"learning_curves", "learning_curves_seconds", "scores", "profiles"}


def test_one_pair_has_no_interval():
    some = [one for one in records() if one["seed"] == 0]
    assert "| – | – | 1 |" in tables(Scores(some), some, CONFIG)


def test_nothing_measured_is_said(tmp_path):
    with pytest.raises(PruningError, match="nothing of the benchmark .* is measured yet"):
        report(BenchmarkConfig(output=str(tmp_path)))


def test_what_others_have_named_makes_no_cell_line_or_html():
    more = {"repair": "none", "rate": 0.5, "model": "a|b", "error": "first\n# second <b>\x1b[31m"}
    odd = record("method|<b>", "a|b:0.5", 0, [1.0, 2.0]) | more
    assert failures_list([odd]) == (
        "Not measured:\n\n"
        "- method\\|&lt;b&gt; on a\\|b:0.5: first # second &lt;b&gt;\ufffd\\[31m (seed 0)\n"
    )
