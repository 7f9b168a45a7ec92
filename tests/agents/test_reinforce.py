"""REINFORCE: an agent that learns, stays in its budget and resumes."""

import json
import math

import pytest
import torch

from helpers.tiny import AdditiveLM, toy_problem, toy_units
from pgprune import PruningError
from pgprune.agents.reinforce import Reinforce, ReinforceConfig, default_learning_rate
from pgprune.budget.budget import Budget
from pgprune.envs import LLMPruningEnv, LLMPruningVectorEnv
from pgprune.metrics.initialization import progressive_rates


def test_the_default_learning_rate_is_the_papers_at_its_30000_evaluations():
    assert default_learning_rate(30_000) == 2e-3
    assert default_learning_rate(1000) > default_learning_rate(3000) > 2e-3
    assert default_learning_rate(30_000, "layers") == 2e-3
    assert default_learning_rate(1000, "layers") < default_learning_rate(1000)


def test_the_environment_must_fit():
    problem = toy_problem(additive())
    with pytest.raises(PruningError, match="evaluates 4 masks a step but .* num_envs 2"):
        Reinforce(LLMPruningVectorEnv(2, problem=problem), ReinforceConfig(masks_per_step=4))
    with pytest.raises(PruningError, match="needs the vector environment, not LLMPruningEnv"):
        Reinforce(LLMPruningEnv(problem=problem))
    with pytest.raises(PruningError, match=r"initial probabilities must have shape \(24,\)"):
        Reinforce(LLMPruningVectorEnv(2, problem=problem), initial=torch.ones(3))


UNITS = toy_units(layers=3, kv_heads=2, channels=6)  # 24 units


def additive(seed: int = 0) -> AdditiveLM:
    """A model whose loss adds up what each pruned unit is worth: the best mask is known."""
    generator = torch.Generator().manual_seed(seed)
    return AdditiveLM(UNITS, torch.rand(UNITS.n, generator=generator, dtype=torch.float64))


def agent_for(lm: AdditiveLM, rate=0.5, masks=2, prune_rates=None, seed=0, initial=None, **options):
    """An agent that starts without any idea of what is important."""
    env = LLMPruningVectorEnv(masks, problem=toy_problem(lm, rate))
    config = ReinforceConfig(masks_per_step=masks, **{"learning_rate": 0.1} | options)
    if initial is None:
        initial = torch.full((UNITS.n,), 1 - rate)
    return Reinforce(env, config, initial, prune_rates, seed=seed)


def timesteps(agent: Reinforce, steps: int) -> float:
    """What a number of steps is in timesteps of 1,024 tokens (a toy batch is 2 x 8)."""
    count = steps * agent.config.masks_per_step * 16 / 1024
    assert agent.steps_for(count) == steps
    return count


def learned(agent: Reinforce, steps: int) -> Reinforce:
    return agent.learn(timesteps(agent, steps))


def test_what_was_learned_at_another_rate_is_half_of_a_start():
    before = learned(agent_for(additive(), rate=0.3), 200)
    agent = agent_for(additive(), rate=0.6)
    agent.start_from(before.state()[0], before.mask())
    probabilities = agent.probabilities
    kept, pruned = before.probabilities > 0.9, before.probabilities < 0.1
    assert probabilities[kept].min() > probabilities[pruned].max()
    assert torch.equal(agent.budget.project(probabilities), probabilities)


@pytest.mark.parametrize(
    ("score", "baseline", "masks", "learning_rate"),
    [
        ("preconditioned", "moving-average", 2, 0.03),
        ("preconditioned", "leave-one-out", 4, 0.03),
        ("paper", "moving-average", 1, 0.01),
        ("paper", "leave-one-out", 2, 0.01),
    ],
)
def test_it_finds_the_units_that_matter(score, baseline, masks, learning_rate):
    """Every other unit is worth 1, the rest nothing: chance keeps 6 of the 12."""
    lm = AdditiveLM(UNITS, (torch.arange(UNITS.n) % 2).double())
    options = {"score": score, "baseline": baseline, "learning_rate": learning_rate}
    agent = learned(agent_for(lm, masks=masks, **options), 300)
    assert int(lm.worth[agent.mask().bool()].sum()) >= 11


def test_probabilities_stay_in_the_budget_and_the_answer_has_the_asked_rate():
    agent = agent_for(additive(), rate=0.3)
    seen = []
    agent.learn(timesteps(agent, 20), lambda agent, _: seen.append(agent.probabilities))
    assert len(seen) == 20
    for s in seen:
        assert s.dtype == torch.float64
        assert bool(((s >= 0) & (s <= 1)).all())
        assert float(agent.budget.excess(s[None])) <= 1e-9
    shares = [float(agent.mask()[UNITS.kind == k].double().mean()) for k in range(2)]
    assert shares == [4 / 6, 12 / 18]  # 0.7 of 6 heads and of 18 channels, never above


def test_it_is_deterministic_in_its_seed():
    first, again, other = (learned(agent_for(additive(), seed=seed), 10) for seed in (3, 3, 4))
    assert torch.equal(first.probabilities, again.probabilities)
    assert first.average == again.average
    assert not torch.equal(first.probabilities, other.probabilities)


def test_a_step_is_algorithm_1():
    """One update written out: draw, evaluate, Eq. (8), Eq. (7), project."""
    lm, s = additive(), torch.full((UNITS.n,), 0.5, dtype=torch.float64)
    options = {"score": "paper", "baseline_start": "zero", "schedule": "constant", "window": 4}
    agent = learned(agent_for(lm, learning_rate=0.01, **options), 1)
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand(2, UNITS.n, generator=generator, dtype=torch.float64) < s).double()
    losses = lm.losses(masks, agent.env.problem.stream.next()).mean(dim=1)
    delta = 3 / 4 * 0 + losses.sum() / (2 * 4)
    estimate = sum((losses[i] - delta) * (masks[i] - s) / (s * (1 - s)) for i in range(2)) / 2
    assert agent.average == pytest.approx(float(delta), abs=1e-12)
    expected = Budget(UNITS, 0.5).project(s - 0.01 * estimate)
    torch.testing.assert_close(agent.probabilities, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("start", "previous"), [("first-loss", None), ("zero", 0.0)])
def test_the_baseline_starts_at_the_first_loss_or_at_zero(start, previous):
    agent = agent_for(additive(), baseline_start=start)
    figures = []
    agent.learn(timesteps(agent, 1), lambda _, row: figures.append(row))
    loss, baseline = figures[0]["rollout/loss"], figures[0]["train/baseline"]
    assert baseline == pytest.approx(loss if previous is None else loss / 5)
    assert figures[0]["rollout/reward"] == -loss


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedules(schedule):
    agent = agent_for(additive(), schedule=schedule, learning_rate=0.2)
    rates = []
    agent.learn(timesteps(agent, 8), lambda _, row: rates.append(row["train/learning_rate"]))
    cosine = [0.1 * (1 + math.cos(math.pi * step / 8)) for step in range(8)]
    assert rates == pytest.approx(cosine if schedule == "cosine" else [0.2] * 8)


def test_a_callback_stops_it():
    agent = agent_for(additive())
    agent.learn(timesteps(agent, 10), lambda agent, _: agent.steps < 4)
    assert agent.steps == 4


@pytest.mark.parametrize("total", [8, 10, 37])
def test_progressive_pruning_raises_the_rate_in_stages_each_with_its_own_schedule(total):
    agent = agent_for(additive(), 0.5, prune_rates=[0.1, 0.3, 0.5], initial=torch.ones(UNITS.n))
    kept, rates = [], []

    def watch(agent: Reinforce, row: dict[str, float]) -> None:
        kept.append(float(agent.budget.kept_share(agent.probabilities[None])))
        rates.append(row["train/learning_rate"])

    agent.learn(timesteps(agent, total), watch)
    stages = [step * 3 // total for step in range(total)]
    for step, stage in enumerate(stages):
        assert kept[step] <= (0.9, 0.7, 0.5)[stage] + 1e-9
    restarts = [step for step in range(1, total) if rates[step] > rates[step - 1]]
    assert restarts == [step for step in range(1, total) if stages[step] > stages[step - 1]]
    assert float(agent.budget.excess(agent.mask()[None])) == 0


def test_progressive_pruning_begins_near_its_first_rate():
    agent = agent_for(additive(), 0.2, prune_rates=progressive_rates(0.2), initial="random")
    assert 0.85 < float(agent.probabilities.mean()) <= 0.95  # below 5 % where the clamp bites
    assert learned(agent, 8).mask().sum() == 4 + 14  # 0.8 of 6 heads and of 18 channels


@pytest.mark.parametrize("stop", [1, 2, 7, 11])
@pytest.mark.parametrize("shared_batch", [True, False])
def test_a_resumed_agent_goes_on_bit_for_bit(stop, shared_batch):
    def agent() -> Reinforce:
        env = LLMPruningVectorEnv(2, problem=toy_problem(additive()), shared_batch=shared_batch)
        return Reinforce(env, ReinforceConfig(), torch.full((UNITS.n,), 0.5), [0.3, 0.5], seed=5)

    undisturbed = learned(agent(), 12)
    killed = agent()
    killed.learn(timesteps(killed, 12), lambda agent, _: agent.steps < stop)
    tensors, values = killed.state()
    values = json.loads(json.dumps(values))
    resumed = agent()
    resumed.restore(tensors, values)
    learned(resumed, 12)
    assert resumed.steps == undisturbed.steps == 12
    assert torch.equal(resumed.probabilities, undisturbed.probabilities)
    assert resumed.average == undisturbed.average
    assert torch.equal(resumed.mask(), undisturbed.mask())
    assert torch.equal(resumed.draw(), undisturbed.draw())


def test_learning_what_is_learned_already_does_nothing():
    agent = learned(agent_for(lm := additive()), 5)
    calls, s = lm.calls, agent.probabilities
    assert torch.equal(learned(agent, 5).probabilities, s)
    assert lm.calls == calls


def test_save_and_load(tmp_path):
    agent = learned(agent_for(additive()), 5)
    agent.save(tmp_path / "agent.safetensors")
    other = agent_for(additive(), seed=9).load(tmp_path / "agent.safetensors")
    assert torch.equal(other.probabilities, agent.probabilities)
    assert (other.steps, other.average, other.skipped) == (5, agent.average, 0)
    assert torch.equal(learned(other, 8).probabilities, learned(agent, 8).probabilities)


def test_what_is_no_saved_agent_of_these_units_is_refused(tmp_path):
    path, agent = tmp_path / "agent.safetensors", agent_for(additive())
    with pytest.raises(PruningError, match="is not a saved agent"):
        agent.load(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(PruningError, match="is not a saved agent"):
        agent.load(path)
    other = toy_problem(AdditiveLM(small := toy_units(layers=1), torch.ones(small.n).double()))
    Reinforce(LLMPruningVectorEnv(2, problem=other), initial=torch.ones(small.n)).save(path)
    with pytest.raises(PruningError, match="chooses among 8 units, this environment has 24"):
        agent.load(path)


def test_predict_gives_the_answer_or_a_draw():
    agent = agent_for(additive())
    action, state = agent.predict(None, state="as it is")
    assert action.dtype.name == "int8" and state == "as it is"
    assert action.tolist() == agent.mask().tolist()
    draws = [agent.predict(deterministic=False)[0] for _ in range(8)]
    assert len({tuple(draw) for draw in draws}) > 1
    assert agent.env.single_action_space.contains(action)


class Faulty(AdditiveLM):
    """Gives NaN or infinity for some masks of some calls."""

    faults: dict[int, list[float]]

    def losses(self, masks, input_ids, fill=None):
        losses = super().losses(masks, input_ids)
        for row, value in enumerate(self.faults.get(self.calls, [])):
            losses[row] += value
        return losses


def faulty(faults: dict[int, list[float]]) -> Faulty:
    lm = Faulty(UNITS, additive().worth)
    lm.faults = faults
    return lm


def test_losses_that_are_no_numbers_are_skipped_and_counted():
    lm = faulty({2: [math.nan, 0], 3: [math.inf, math.nan], 5: [0, -math.inf]})
    rows = []
    agent = agent_for(lm)
    agent.learn(timesteps(agent, 6), lambda _, row: rows.append(row))
    assert [row["train/skipped"] for row in rows] == [0, 1, 3, 3, 4, 4]
    assert [math.isfinite(row["rollout/loss"]) for row in rows] == [True, True, False] + [True] * 3
    assert bool(agent.probabilities.isfinite().all())
    assert math.isfinite(agent.average)


def test_a_step_without_any_loss_changes_nothing_but_the_count():
    agent = agent_for(faulty({1: [math.nan, math.nan]}))
    start = agent.budget.project(agent.probabilities)
    learned(agent, 1)
    assert torch.equal(agent.probabilities, start)
    assert (agent.average, agent.steps, agent.skipped, agent.in_vain) == (None, 1, 2, 1)


@pytest.mark.parametrize(
    ("baseline", "faults"),
    [("moving-average", [math.nan, math.inf]), ("leave-one-out", [0, math.nan])],
)
def test_too_many_steps_in_vain_stop_with_a_reason(baseline, faults):
    agent = agent_for(faulty(dict.fromkeys(range(5, 100), faults)), baseline=baseline)
    with pytest.raises(PruningError, match="too few losses were finite .* 20 steps in a row"):
        learned(agent, 100)
    assert agent.steps == 4 + 19
