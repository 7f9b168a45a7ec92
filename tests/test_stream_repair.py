"""Repairs for masks near one that was looked at, and rewards computed with them."""

from pathlib import Path

import pytest
import torch

from command import results, train
from masks import patterns
from pgprune import PruningError
from pgprune.agents.auto import Auto
from pgprune.agents.repaired_reward import RepairedReward
from pgprune.agents.settings import Settings
from pgprune.envs import LLMPruningVectorEnv
from pgprune.masked_lm import MaskedLM
from pgprune.problem import Problem
from pgprune.repair import Repair, applied, repair
from pgprune.run import Run
from pgprune.stream_repair import StreamRepair
from pgprune.units import PruningUnits
from tiny import tiny_model, tokens

WINDOWS = tokens(batch=4, length=12, seed=1)
DAMPING = 0.02


def half(units: PruningUnits, seed: int = 2) -> torch.Tensor:
    return (torch.rand(units.n, generator=torch.Generator().manual_seed(seed)) < 0.6).byte()


def losses_with(lm: MaskedLM, mask: torch.Tensor, found: Repair) -> torch.Tensor:
    with applied(lm, found):
        return lm.losses(mask[None], WINDOWS)


@pytest.mark.parametrize("granularity", ["heads+channels", "heads", "channels"])
def test_the_mask_that_is_followed_gets_its_own_repair(model, granularity):
    lm = MaskedLM(model, PruningUnits.of(model, granularity))
    stream = StreamRepair(lm, WINDOWS, DAMPING)
    for mask in [half(lm.units), *patterns(lm.units).values()]:
        stream.follow(mask)
        own = repair(lm, mask, WINDOWS, "least-squares", DAMPING)
        found = losses_with(lm, mask, stream(mask))
        torch.testing.assert_close(found, losses_with(lm, mask, own), rtol=1e-7, atol=1e-7)


def test_a_mask_that_differs_in_the_last_projection_only_gets_its_own_repair_too(model):
    """All that comes before it is as it was in the model that the moments are from."""
    lm = MaskedLM(model, PruningUnits.of(model))
    stream, mask = StreamRepair(lm, WINDOWS, DAMPING), half(lm.units)
    stream.follow(mask)
    last = lm.units.groups[-1]
    mask[last.start : last.stop] = half(lm.units, seed=5)[last.start : last.stop]
    own = repair(lm, mask, WINDOWS, "least-squares", DAMPING)
    found = losses_with(lm, mask, stream(mask))
    torch.testing.assert_close(found, losses_with(lm, mask, own), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(found, losses_with(lm, mask, Repair()))


def test_it_costs_what_a_repair_costs():
    model = tiny_model("llama")
    lm = MaskedLM(model, PruningUnits.of(model))
    mask = half(lm.units)
    repair(lm, mask, WINDOWS, "least-squares")
    once, stream = lm.tokens, StreamRepair(lm, WINDOWS)
    stream.follow(mask)
    assert lm.tokens == 2 * once
    stream(mask)
    assert lm.tokens == 2 * once


def test_an_overflow_is_an_error():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    lm = MaskedLM(model, PruningUnits.of(model))
    with pytest.raises(PruningError, match="layer 1 overflow"):
        StreamRepair(lm, WINDOWS).follow(lm.units.ones())


# ---------------------------------------------------------------- the environment and the agent


def test_rewards_follow_the_answer(problem: Problem) -> None:
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

    agent.learn(8 * agent._step_tokens // 1024 or 1, callback)
    assert refits == [step for step in range(1, agent.steps + 1) if step % 3 == 0]
    masks, batch = torch.stack([agent.mask(), half(problem.units)]), windows[:4]
    stream = StreamRepair(problem.lm, windows)
    assert follow.followed is not None
    stream.follow(follow.followed)
    for mask, losses in zip(masks, env.judge(masks, batch), strict=True):
        with applied(problem.lm, stream(mask)):
            expected = problem.lm.losses(mask[None], batch)[0]
        torch.testing.assert_close(losses, expected)
        assert not torch.allclose(losses, problem.lm.losses(mask[None], batch)[0])


# ---------------------------------------------------------------- the command


def test_a_run_ships_what_it_was_rewarded_for(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(*options, f"--output={run}", "--reward=repaired") == 0
    assert Settings.from_run(Run.open(run)).repair.repair == "least-squares"
    found = results(run)["perplexity"]
    assert found["pruned"] != found["masked"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repair=none"], "--repair is none; choose --repair least-squares or --reward plain"),
        (["--granularity=blocks"], "not granularity blocks; choose reward plain"),
        (["--granularity=layers"], "choose reward plain"),
    ],
)
def test_what_cannot_be_is_refused_before_a_run_exists(
    more: list[str], message: str, options: list[str], tmp_path: Path
) -> None:
    with pytest.raises(PruningError, match=message):
        train(*options, *more, f"--output={tmp_path / 'run'}", "--reward=repaired")
    assert not (tmp_path / "run").exists()
