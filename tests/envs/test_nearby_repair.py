"""Repairs from the moments of a similar mask, and rewards computed with them."""

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import results, train
from helpers.masks import patterns
from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.agents.auto import Auto
from pgprune.agents.training.repaired_reward import RepairedReward
from pgprune.agents.training.settings import Settings
from pgprune.envs import LLMPruningVectorEnv
from pgprune.envs.nearby_repair import NearbyRepair
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group, PruningUnits
from pgprune.repair.fit import choose_and_refit, fit_repair
from pgprune.repair.least_squares import LeastSquares
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.run import Run

WINDOWS = tokens(batch=4, length=12, seed=1)
DAMPING = 0.02


def half(units: PruningUnits, seed: int = 2) -> torch.Tensor:
    return (torch.rand(units.n, generator=torch.Generator().manual_seed(seed)) < 0.6).byte()


def refitted(lm: MaskedLM, mask: torch.Tensor) -> Repair:
    """Each projection of the mask refitted to what it gives densely, layer after layer."""

    def keep(problem: LeastSquares, group: Group) -> torch.Tensor:
        return mask[group.start : group.stop].bool()

    return choose_and_refit(lm, WINDOWS, keep, "projection", DAMPING)[1]


def losses_with(lm: MaskedLM, mask: torch.Tensor, found: Repair) -> torch.Tensor:
    with repaired(lm, found):
        return lm.losses(mask[None], WINDOWS)


@pytest.mark.parametrize("granularity", ["heads+channels", "heads", "channels", "values"])
def test_the_mask_that_is_followed_gets_its_own_repair(model, granularity):
    lm = masked_lm(model, granularity)
    nearby = NearbyRepair(lm, WINDOWS, DAMPING)
    for mask in [half(lm.units), *patterns(lm.units).values()]:
        nearby.follow(mask)
        own = refitted(lm, mask)
        found = losses_with(lm, mask, nearby(mask))
        torch.testing.assert_close(found, losses_with(lm, mask, own), rtol=1e-7, atol=1e-7)


def test_a_mask_that_differs_in_the_last_projection_only_gets_its_own_repair_too(model):
    """All that comes before it is as it was in the model that the moments are from."""
    lm = masked_lm(model)
    nearby, mask = NearbyRepair(lm, WINDOWS, DAMPING), half(lm.units)
    nearby.follow(mask)
    last = lm.units.groups[-1]
    mask[last.start : last.stop] = half(lm.units, seed=5)[last.start : last.stop]
    own = refitted(lm, mask)
    found = losses_with(lm, mask, nearby(mask))
    torch.testing.assert_close(found, losses_with(lm, mask, own), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(found, losses_with(lm, mask, Repair()))


def test_it_costs_what_a_repair_costs():
    lm = masked_lm(tiny_model("llama"))
    mask = half(lm.units)
    refitted(lm, mask)
    once, nearby = lm.meter.tokens, NearbyRepair(lm, WINDOWS)
    nearby.follow(mask)
    assert lm.meter.tokens == 2 * once
    nearby(mask)
    assert lm.meter.tokens == 2 * once


def test_an_overflow_is_an_error():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    lm = masked_lm(model)
    with pytest.raises(PruningError, match="layer 1 overflow"):
        NearbyRepair(lm, WINDOWS).follow(lm.units.ones())


def test_rewards_follow_the_answer(problem):
    env = LLMPruningVectorEnv(4, problem=problem)
    windows = problem.stream.head(16)
    follow, agent = RepairedReward(env, windows, every=3), Auto(env)
    follow.follow(agent.mask())
    refits: list[int] = []

    def callback(agent: Auto, figures: dict[str, float]) -> bool:
        before = follow.followed
        assert follow(agent, figures) is True
        if follow.followed is not before:
            refits.append(agent.steps)
        return True

    agent.learn(8 * agent.step_tokens // 1024 or 1, callback)
    assert refits == [step for step in range(1, agent.steps + 1) if step % 3 == 0]
    masks, batch = torch.stack([agent.mask(), half(problem.units)]), windows[:4]
    nearby = NearbyRepair(problem.lm, windows)
    assert follow.followed is not None
    nearby.follow(follow.followed)
    for mask, losses in zip(masks, env.evaluate(masks, batch), strict=True):
        with repaired(problem.lm, nearby(mask)):
            expected = problem.lm.losses(mask[None], batch)[0]
        torch.testing.assert_close(losses, expected)
        assert not torch.allclose(losses, problem.lm.losses(mask[None], batch)[0])


def test_a_run_ships_what_it_was_rewarded_for(likely, tmp_path):
    run = tmp_path / "run"
    assert train(*likely, f"--output={run}", "--reward=repaired") == 0
    assert Settings.from_run(Run.open(run)).repair.repair == "least-squares"
    found = results(run)["perplexity"]
    assert found["pruned"] != found["masked"]


@pytest.mark.parametrize(("seed", "better"), [(9, 0), (1, 1)])  # the learned one, the start
def test_the_answer_is_the_better_one_of_start_and_learned_once_repaired(
    seed, better, options, problem, tmp_path, monkeypatch
):
    generator = torch.Generator().manual_seed(seed)
    learned = problem.budget.round(torch.rand(problem.units.n, generator=generator).double())
    monkeypatch.setattr(Auto, "mask", lambda agent: learned.clone())
    more = ["--agent=auto", "--reward=repaired", "--total-timesteps=1", "--seed=3"]
    assert train(*options, *more, f"--output={tmp_path / 'run'}") == 0
    found = load_file(tmp_path / "run" / "mask.safetensors")
    answers = [learned, found["initial"]]
    lm, stream = problem.lm, problem.stream
    losses = []
    for mask in answers:
        with repaired(lm, fit_repair(lm, mask, stream.head(16), "least-squares")):
            losses.append(lm.losses(mask[None], problem.validation).mean())
    assert losses[better] < losses[1 - better]
    assert torch.equal(found["mask"], answers[better])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repair=none"], "--repair least-squares or --reward plain"),
        (["--granularity=blocks"], "granularity blocks.*reward plain"),
        (["--granularity=layers"], "reward plain"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_exists(more, message, options, tmp_path):
    with pytest.raises(PruningError, match=message):
        train(*options, *more, f"--output={tmp_path / 'run'}", "--reward=repaired")
    assert not (tmp_path / "run").exists()
