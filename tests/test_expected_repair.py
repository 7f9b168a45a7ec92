"""Weights that are the best on average over a policy's masks, and rewards computed with them."""

from itertools import product
from pathlib import Path

import pytest
import torch

from command import results, train
from pgprune import PruningError
from pgprune.agents.reinforce import Reinforce, ReinforceConfig
from pgprune.agents.repaired_reward import RepairedReward
from pgprune.agents.settings import Settings
from pgprune.envs import LLMPruningVectorEnv
from pgprune.expected_repair import ExpectedRepair
from pgprune.masked_lm import MaskedLM
from pgprune.problem import Problem
from pgprune.repair import applied
from pgprune.run import Run
from pgprune.second_moments import LeastSquares, SecondMoments
from pgprune.units import PruningUnits
from tiny import tiny_model, tokens

WINDOWS = tokens(batch=4, length=12, seed=1)
DAMPING = 0.02


def inputs_of(lm: MaskedLM) -> dict[tuple[int, str], torch.Tensor]:
    """The inputs of all projections of the dense model, (tokens, inputs)."""
    found = {}
    for seen in lm.observe(lm.units.ones(), WINDOWS):
        heads, channels = zip(*seen.inputs, strict=True)
        found[seen.layer, "heads"] = torch.cat(heads).flatten(0, -2)
        found[seen.layer, "channels"] = torch.cat(channels).flatten(0, -2)
    return found


def policy(n: int) -> torch.Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_no_weights_are_better_on_average_over_all_masks():
    """At the minimum, the error's derivative is zero: here as a sum over every mask of heads."""
    model = tiny_model("llama")
    lm = MaskedLM(model, PruningUnits.of(model, "heads"))
    s = policy(lm.units.n)
    repair = ExpectedRepair(lm, WINDOWS, DAMPING).at(s)
    for key, x in inputs_of(lm).items():
        if key[1] == "channels":
            assert key not in repair.weights
            continue
        group = next(g for g in lm.units.groups if (g.layer, g.kind) == key)
        weight, keep = lm.projection(*key), s[group.start : group.stop]
        ridge = DAMPING * float(x.square().sum(0).mean())
        derivative = ridge * (repair.weights[key] - weight)
        for mask in product((0.0, 1.0), repeat=len(keep)):
            kept = torch.tensor(mask, dtype=x.dtype)
            share = float((keep * kept + (1 - keep) * (1 - kept)).prod())
            masked = x * kept.repeat_interleave(x.shape[1] // len(keep))
            error = masked @ repair.weights[key].T - x @ weight.T  # (tokens, D)
            derivative = derivative + share * error.T @ masked
        torch.testing.assert_close(derivative, torch.zeros_like(derivative), rtol=0, atol=1e-9)


def test_a_policy_without_doubt_gets_the_repair_of_its_mask(model):
    units = PruningUnits.of(model)
    lm, mask = MaskedLM(model, units), (policy(units.n) < 0.6).double()
    repair = ExpectedRepair(lm, WINDOWS, DAMPING).at(mask)
    for group in units.groups:
        key = group.layer, group.kind
        weight, x = lm.projection(*key), inputs_of(lm)[key]
        moments = SecondMoments.of(weight)
        moments.add(x, x @ weight.T)
        width = x.shape[1] // (group.stop - group.start)
        squares = LeastSquares(moments, weight, width, DAMPING)
        kept = mask[group.start : group.stop] == 1
        columns = squares.inputs(kept)
        found = repair.weights[key][:, columns] if key in repair.weights else weight[:, columns]
        torch.testing.assert_close(found, squares.refit(kept)[:, columns], rtol=1e-8, atol=1e-8)


def test_what_is_kept_for_sure_is_left_alone(model):
    lm = MaskedLM(model, PruningUnits.of(model))
    assert not ExpectedRepair(lm, WINDOWS).at(torch.ones(lm.units.n)).weights


def test_an_overflow_is_an_error():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    with pytest.raises(PruningError, match="the channels of layer 1 overflow"):
        ExpectedRepair(MaskedLM(model, PruningUnits.of(model)), WINDOWS)


# ---------------------------------------------------------------- the environment and the agent


def test_rewards_follow_the_policy(problem: Problem) -> None:
    env = LLMPruningVectorEnv(2, problem=problem)
    windows = problem.stream.head(16)
    follow, agent = RepairedReward(env, windows, every=3), Reinforce(env, ReinforceConfig())
    follow.follow(agent.probabilities)
    refits: list[int] = []

    def callback(agent: Reinforce, figures: dict[str, float]) -> bool:
        before = env.repair
        assert follow(agent, figures) is True
        if env.repair is not before:
            refits.append(agent.steps)
        return True

    agent.learn(8 * agent._step_tokens // 1024 or 1, callback)
    assert refits == [step for step in range(1, agent.steps + 1) if step % 3 == 0]
    masks, batch = agent.mask()[None], windows[:4]
    expected = ExpectedRepair(problem.lm, windows).at(follow.probabilities)
    with applied(problem.lm, expected):
        losses = problem.lm.losses(masks, batch)
    torch.testing.assert_close(env.judge(masks, batch), losses)
    assert not torch.allclose(losses, problem.lm.losses(masks, batch))


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
