"""The agents' YAML files: those that come with the package, which entry counts, and mistakes."""

import pytest

from pgprune.agents.registry import AGENTS
from pgprune.errors import PruningError
from pgprune.experiments.cells import Cell
from pgprune.experiments.checks import settings_of
from pgprune.experiments.hyperparameters import BENCHMARK_SETTINGS, read_hyperparameters
from pgprune.experiments.plan import BenchmarkConfig


def cell(agent, model="builtin", rate=0.5, granularity="heads+channels"):
    return Cell(agent, model, rate, 0, granularity)


def settings(cell, own):
    return settings_of(cell, cell.words(BenchmarkConfig(), {}, own))


def test_every_agent_has_a_file_and_every_file_an_agent():
    assert {path.stem for path in BENCHMARK_SETTINGS.iterdir()} == set(AGENTS)


@pytest.mark.parametrize("agent", AGENTS)
def test_the_files_are_valid_and_their_searches_alike(agent):
    found = read_hyperparameters(agent)
    trials = found.trials()
    assert len(trials) == 6 == len({str(one) for one in trials})
    tasks = [cell(agent), cell(agent, rate=0.3, granularity="layers")]
    for task in tasks:
        own = found.of(task)
        assert own
        for options in [own, *(own | one for one in trials)]:
            made = settings(task, options)
            assert made.agent.agent == agent and made.pruning.granularity == task.granularity
            for name, value in options.items():
                holder = made.agent if name == "action" else made.own
                assert getattr(holder, name) == value
    fine = {name: value for name, value in found.of(tasks[0]).items() if name in found.search}
    assert all(value in found.search[name] for name, value in fine.items())


def test_the_narrower_entry_goes_before_the_wider_one(tmp_path):
    (tmp_path / "auto.yaml").write_text(
        "default: {population: 4, deviation: 0.1, init-samples: 9}\n"
        "layers: {population: 6}\n"
        "builtin: {deviation: 0.2}\n"
        "builtin:0.50: {population: 8}\n"
        "builtin:.5:layers: {population: 10}\n"
    )
    found = read_hyperparameters("auto", tmp_path)
    shared = {"init_samples": 9}
    expected = {
        cell("auto", "other", 0.5): {"population": 4, "deviation": 0.1},
        cell("auto", "other", 0.5, "layers"): {"population": 6, "deviation": 0.1},
        cell("auto", "builtin", 0.3, "layers"): {"population": 6, "deviation": 0.2},
        cell("auto", "builtin", 0.5): {"population": 8, "deviation": 0.2},
        cell("auto", "builtin", 0.5, "layers"): {"population": 10, "deviation": 0.2},
    }
    for task, own in expected.items():
        assert found.of(task) == own | shared
    assert found.trials() == [{}]  # nothing to search


def test_an_agent_without_a_file_has_its_own_defaults(tmp_path):
    assert read_hyperparameters("auto", tmp_path).of(cell("auto")) == {}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("auto", "default: {populatoin: 4}", "'populatoin' is no option of agent auto, which has "),
        ("auto", "default: {ppo-masks: 4}", "'ppo-masks' is no option of agent auto"),
        ("auto", "default: {prune-rate: 0.3}", "'prune-rate' is no option of agent auto"),
        ("auto", "builtin:1.5: {population: 4}", "'builtin:1.5' is not default, search, GRANUL"),
        ("auto", "builtin:0.5:atoms: {population: 4}", "'builtin:0.5:atoms' is not default"),
        ("auto", "layers:0.5: {population: 4}", "'layers:0.5' is not default"),
        ("auto", "search: {population: 4}", "population in search must be a list of values"),
        ("auto", "population: 4", "does not hold sections of settings"),
        ("auto", "default: [", "is not readable as YAML"),
        ("alphago", "default: {}", "alphago.yaml is of no agent; the agents are "),
    ],
)
def test_mistakes_in_files_are_one_sentence(name, text, says, tmp_path):
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    with pytest.raises(PruningError, match=says) as raised:
        read_hyperparameters("auto", tmp_path)
    assert str(path) in str(raised.value)
