"""The search among levels: where it starts, what it learns, and a whole run."""

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.command import Crash, assert_same_run, results, train
from helpers.layered import left_to_gain, loss
from helpers.tiny import AdditiveLM, toy_problem, toy_units
from pgprune import PruningError
from pgprune.agents.level_search import RADII, SHARES, LevelSearch, scores_of_levels
from pgprune.agents.levels.start import starts
from pgprune.agents.training import final_mask, levels
from pgprune.agents.training.train import Training
from pgprune.budget.budget import Budget
from pgprune.budget.level_grid import grid, start_shares
from pgprune.budget.nested import NestedBudget
from pgprune.envs import LLMPruningVectorEnv
from pgprune.export.export import ExportConfig, export
from pgprune.metrics import Importance
from pgprune.repair.choice import chosen_repair
from pgprune.repair.levels import GroupLevels, Levels
from pgprune.runs.finished import FinishedRun

UNITS = toy_units(layers=6, channels=40)


@dataclass
class LevelLM(AdditiveLM):
    """An additive loss whose model takes refitted weights, and ignores them."""

    def refitted(self, refit: object) -> nullcontext[None]:
        return nullcontext()


def searching(
    budget_kind: str = "parameters",
    seed: int = 0,
    rate: float = 0.4,
    within: torch.Tensor | None = None,
) -> LevelSearch:
    """A search over units of which the later layers are worth less."""
    generator = torch.Generator().manual_seed(seed)
    worth = torch.rand(UNITS.n, generator=generator).double() / (1 + UNITS.layer)
    lm = LevelLM(UNITS, worth)
    budget = Budget(UNITS, rate, budget_kind)
    if within is not None:
        budget = NestedBudget(budget, within)
    env = LLMPruningVectorEnv(10, problem=replace(toy_problem(lm), budget=budget))
    kept, _ = grid(env.budget, shared=True) if rate != 0.4 else grid(env.budget)
    groups = []
    for group, counts in zip(UNITS.groups, kept, strict=True):
        own = worth[group.start : group.stop]
        order = own.argsort(descending=True)
        lost = own[order].flip(0).cumsum(0)
        errors = torch.cat([torch.zeros(1).double(), lost])[len(order) - counts]
        groups.append(GroupLevels(counts, order, errors / own.sum(), 1))
    env.judge.levels = Levels(UNITS, groups, Path("nowhere"))
    _, start = grid(env.budget)
    return LevelSearch(env, Importance(scores_of_levels(env.judge.levels, start)), seed)


@pytest.mark.parametrize("budget", ["per-kind", "parameters"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_how_much_layers_keep(budget, seed):
    agent = searching(budget, seed)
    start = agent.mask()
    agent.learn(12)
    # What single units could gain is out of its reach, as levels have the order of their group.
    assert left_to_gain(agent.env.problem.lm, agent.mask(), start, agent.budget) < 0.25


def test_masks_are_on_the_budget_and_what_it_allows_is_kept():
    agent = searching()
    agent.learn(3, lambda agent, _: assert_on_budget(agent))
    assert_on_budget(agent)


def assert_on_budget(agent: LevelSearch) -> None:
    for mask in agent.finalists():
        assert agent.budget.excess(mask[None]) == 0
        left = agent.budget.pools[0].capacity - int(agent.budget.cost[mask.bool()].sum())
        assert left < int(agent.budget.cost.min())


def test_a_search_goes_on_where_it_was_saved(tmp_path):
    assert_goes_on(searching(), searching(), tmp_path / "agent.safetensors", rate=0.4)


def test_so_does_one_that_started_from_a_neighbour(tmp_path):
    assert_goes_on(started(), started(), tmp_path / "agent.safetensors", rate=0.6)


def assert_goes_on(whole: LevelSearch, saved: LevelSearch, path: Path, rate: float) -> None:
    whole.learn(6)
    saved.learn(6, lambda agent, _: agent.steps < 9)
    saved.save(path)
    resumed = searching(rate=rate)
    resumed.load(path)
    resumed.learn(6)
    assert torch.equal(resumed.choice, whole.choice)
    assert torch.equal(resumed.sums, whole.sums)


def started() -> LevelSearch:
    """A search that starts from the answer of another at a lower rate."""
    before = searching(rate=0.3).learn(12)
    agent = searching(rate=0.6)
    agent.start_from(before.state()[0], before.mask())
    return agent


def test_a_start_from_a_neighbour_stands_for_the_first_round():
    agent, rounds = started(), list[float]()
    assert 0 < int((agent.choice - agent.previous).abs().max()) <= RADII[1]
    agent.learn(6, lambda _, figures: rounds.append(figures["train/round"]))
    first = round(len(rounds) * sum(SHARES[:2]))
    assert rounds == [1.0] * (first - 1) + [2.0] * (len(rounds) - first + 1)


def test_a_worse_choice_is_taken_back():
    agent = searching()
    before = agent.choice.clone()
    agent.previous, agent.choice = before, before.clone()
    agent.choice[1] += 1
    agent._learn_of(len(before), 0, -0.2)  # the one before was better
    agent._improve()
    assert torch.equal(agent.previous, before)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("budget", ["per-kind", "parameters"])
def test_it_starts_from_what_was_learned_at_a_lower_rate(budget, nested):
    before = searching(budget).learn(12)
    agent = searching(budget, rate=0.6, within=before.mask() if nested else None)
    cold = agent.mask()
    agent.start_from(before.state()[0], before.mask())
    lm = agent.env.problem.lm
    assert_on_budget(agent)
    assert loss(lm, agent.mask()) < loss(lm, cold)
    agent.learn(2)
    if nested:
        assert all(bool((mask <= before.mask()).all()) for mask in agent.finalists())
    assert left_to_gain(lm, agent.mask(), cold, agent.budget) < 0.35


@given(
    st.sampled_from(["per-kind", "units", "parameters"]), st.floats(0.05, 0.45), st.integers(4, 80)
)
def test_levels_are_whole_steps_around_the_start(budget, rate, channels):
    units = toy_units(channels=channels)
    allowed = Budget(units, rate, budget)
    kept, start = grid(allowed)
    step = max(1, round(channels / 16))
    for group, counts, level in zip(units.groups, kept, start.tolist(), strict=True):
        assert counts[0] == group.stop - group.start
        assert counts[-1] == 0
        assert bool((counts.diff() < 0).all())
        if group.kind == "channels":
            inner = counts[1:-1]
            assert bool(((inner - counts[level]) % step == 0).all()) or level == 0
    first = [int(counts[level]) for counts, level in zip(kept, start.tolist(), strict=True)]
    for pool in allowed.pools:
        members = set(units.group[pool.members].tolist())
        costs = [first[g] * int(allowed.cost[units.groups[g].start]) for g in members]
        assert sum(costs) <= pool.capacity


@pytest.mark.parametrize("budget", ["per-kind", "parameters"])
def test_starts_are_within_the_budget_and_differ(budget):
    agent = searching(budget)
    choices = starts(agent.levels, agent.budget)
    assert not agent.budget.excess(agent.levels.masks(choices)).any()
    errors = [
        sum(float(of.errors[level]) for of, level in zip(agent.levels.groups, choice, strict=True))
        for choice in choices
    ]
    assert errors[1] == min(errors)
    assert errors[1] <= errors[3] <= errors[0]
    assert errors[1] < errors[0]


def test_channels_pay_first_where_they_can():
    shares = start_shares(Budget(UNITS, 0.2, "parameters"))
    by_kind = [shares[k :: len(UNITS.kinds)] for k in range(2)]
    assert bool((by_kind[0] == 1).all())
    total, channels = int(UNITS.cost.sum()), int(UNITS.cost[UNITS.kind == 1].sum())
    torch.testing.assert_close(by_kind[1], torch.full((6,), 1 - 0.2 * total / channels).double())
    assert bool((start_shares(Budget(UNITS, 0.95, "parameters")) < 0.1).all())


LEVELS = ("--agent=auto", "--reward=levels", "--budget=parameters", "--prune-rate=0.3")


@pytest.mark.parametrize("repair", ["auto", "least-squares"])
def test_a_run_ships_levels_and_can_be_resumed(repair, likely, monkeypatch, tmp_path):
    fitted = list[str]()

    def recorded(lm, mask, windows, held_out, config):
        fitted.append(config.repair)
        return chosen_repair(lm, mask, windows, held_out, config)

    monkeypatch.setattr(final_mask, "chosen_repair", recorded)
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    few = [*likely, *LEVELS, "--total-timesteps=2", "--checkpoint-every=1", f"--repair={repair}"]
    assert train(*few, f"--output={whole}") == 0
    assert fitted == ([] if repair == "auto" else [repair])
    names = ["levels"] if repair == "auto" else ["levels", repair]
    assert results(whole)["repair"]["asked"] in names
    assert not (whole / "levels").exists()  # only the weights that ship stay
    assert (whole / "repair.safetensors").is_file()
    assert results(whole)["prune_rate"]["achieved"] >= 0.3
    if repair == "auto":
        export(FinishedRun.open(whole), ExportConfig(output=str(tmp_path / "hf")))
        assert "| repair | weights of levels |" in (tmp_path / "hf" / "README.md").read_text()
    shutil.copytree(whole, cut)
    (cut / "results.json").unlink()
    assert train(f"--resume={cut}") == 0
    assert_same_run(whole, cut)


@pytest.mark.parametrize("moment", ["before the first checkpoint", "when levels are dropped"])
def test_levels_of_a_run_that_crashed(moment, likely, monkeypatch, tmp_path):
    whole, cut = (tmp_path / name for name in ("whole", "cut"))
    few = [*likely, *LEVELS, "--total-timesteps=2"]
    assert train(*few, f"--output={whole}") == 0

    def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        if moment == "before the first checkpoint":
            patched.setattr(Training, "_initialise", crash)
        else:
            patched.setattr(levels, "shutil", SimpleNamespace(rmtree=crash))
        train(*few, f"--output={cut}")
    assert (cut / "levels" / "groups.safetensors").is_file()
    assert train(f"--resume={cut}") == 0
    assert results(cut)["tokens"] == results(whole)["tokens"]
    assert_same_run(whole, cut)
    assert not (cut / "levels").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--repair=bias", "refitted weights"),
        ("--repair=none", "--repair is none"),
        ("--scope=local", "scope local"),
        ("--granularity=blocks", "granularity blocks"),
        ("--ray-actors=2", "one process"),
    ],
)
def test_what_levels_do_not_go_with(option, message, options, tmp_path):
    with pytest.raises(PruningError, match=message):
        train(*options, *LEVELS, option, f"--output={tmp_path / 'run'}")
