"""REINFORCE with estimators of less variance: antithetic pairs and the dense loss as a control."""

import math

import pytest
import torch

from helpers.tiny import AdditiveLM, toy_problem, toy_units
from pgprune import PruningError
from pgprune.agents.reinforce import Reinforce, ReinforceConfig
from pgprune.envs import LLMPruningVectorEnv

UNITS = toy_units(layers=3, kv_heads=2, channels=6)  # 24 units
WORTH = (torch.arange(UNITS.n) % 2).double()  # every other unit is worth 1, the rest nothing


def agent_for(lm: AdditiveLM, masks: int = 2, **options: str | float) -> Reinforce:
    config = ReinforceConfig(masks_per_step=masks, **{"learning_rate": 0.03} | options)
    env = LLMPruningVectorEnv(config.masks, problem=toy_problem(lm))
    return Reinforce(env, config, torch.full((UNITS.n,), 0.5))


def learned(agent: Reinforce, steps: int) -> Reinforce:
    return agent.learn(steps * agent.step_tokens / 1024)


@pytest.mark.parametrize(
    "options",
    [{"sampling": "antithetic"}, {"sampling": "antithetic", "masks": 4}, {"control": "dense"}],
)
@pytest.mark.parametrize(("score", "learning_rate"), [("preconditioned", 0.03), ("paper", 0.01)])
def test_it_finds_the_units_that_matter(options, score, learning_rate):
    lm = AdditiveLM(UNITS, WORTH)
    agent = learned(agent_for(lm, score=score, learning_rate=learning_rate, **options), 300)
    assert int(WORTH[agent.mask().bool()].sum()) >= 11  # of 12; chance keeps 6


def variance(agent: Reinforce, steps: int = 200) -> float:
    """Of the steps that it takes from the same policy on batches that differ."""
    seen, start = [], agent.probabilities
    agent.budget.project = lambda probabilities: probabilities  # type: ignore[method-assign]

    def again(agent: Reinforce, _: dict[str, float]) -> None:
        seen.append(agent.probabilities - start)
        agent.probabilities = start

    learned_by = agent.steps_for(steps * agent.step_tokens / 1024)
    agent.learn(learned_by * agent.step_tokens / 1024, again)
    return float(torch.stack(seen).var(dim=0).sum())


def test_pairs_and_controls_lower_the_variance():
    """By factors, where losses have a large part that no mask changes and batches differ."""

    class Uneven(AdditiveLM):
        """Some batches are much harder than others."""

        def losses(self, masks, input_ids, fill=None):
            return super().losses(masks, input_ids) + 100 + 30 * math.sin(self.calls)

    constant = {"schedule": "constant", "score": "paper"}
    plain, controlled, paired = (
        variance(agent_for(Uneven(UNITS, WORTH), **constant, **options))
        for options in ({}, {"control": "dense"}, {"sampling": "antithetic"})
    )
    assert controlled < plain / 10
    assert paired < plain / 10


def test_the_dense_loss_costs_one_evaluation_a_step():
    lm = AdditiveLM(UNITS, WORTH)
    agent = agent_for(lm, masks=3, control="dense")
    assert agent.env.num_envs == 4
    assert agent.steps_for(1) == 1024 // (4 * 16)
    with pytest.raises(PruningError, match="evaluates 3 masks a step .* num_envs 2"):
        Reinforce(LLMPruningVectorEnv(2, problem=toy_problem(lm)), ReinforceConfig(control="dense"))


def test_the_dense_loss_is_subtracted_but_not_reported():
    lm, figures = AdditiveLM(UNITS, WORTH), []
    agent = agent_for(lm, control="dense")
    agent.learn(1 / 1024, lambda _, row: figures.append(row))
    batch = toy_problem(lm).stream.next().double().mean() / 26
    losses = figures[0]["rollout/loss"]
    assert losses - figures[0]["train/baseline"] == pytest.approx(float(batch))


@pytest.mark.parametrize(("row", "masks"), [(0, 2), (3, 4)])
def test_a_pair_without_both_losses_teaches_nothing(row, masks):
    lm = AdditiveLM(UNITS, WORTH)
    losses = lm.losses

    def broken(masks, *arguments):
        found = losses(masks, *arguments)
        found[row] = torch.nan
        return found

    lm.losses = broken
    agent = agent_for(lm, masks=masks, sampling="antithetic")
    start = agent.budget.project(agent.probabilities)
    learned(agent, 1)
    assert agent.skipped == 2
    assert torch.equal(agent.probabilities, start) == (masks == 2)
    assert bool(agent.probabilities.isfinite().all())
