"""Counts how often the host waits for the device in a step, on a simulated GPU."""

from collections.abc import Callable

import pytest
import torch

from helpers.far_device import GPU, FarDevice, take
from helpers.masks import all_patterns
from helpers.tiny import masked_lm, tiny_model, tokens, toy_problem
from pgprune.agents.auto import Auto, AutoConfig
from pgprune.agents.base import Agent
from pgprune.agents.reinforce import Reinforce, ReinforceConfig
from pgprune.envs import LLMPruningVectorEnv
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.metrics import Importance
from pgprune.utils.transfer import read, send

STEPS = 6


def test_the_far_device_counts_what_a_host_waits_for():
    with FarDevice() as device:
        far = send(torch.arange(4.0), GPU)
        assert (far.device.type, device.waits) == ("cuda", [])
        assert float((far * 2).sum()) == 12
        assert far[far > 1].cpu().tolist() == [2, 3]
        assert far.cpu().tolist() == [0, 1, 2, 3]
        assert device.waits == ["_local_scalar_dense", "index", "_to_copy", "_to_copy"]
        assert read(far, far + 1)[1].tolist() == [1, 2, 3, 4]
        assert device.waits[4:] == ["synchronize"]
        with pytest.raises(AssertionError, match="tensors of both places"):
            far + torch.ones(4)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_evaluation_of_masks_on_the_host_does_not_wait(model, executor):
    lm = MaskedLM(model, units := PruningUnits.of(model), executor)
    masks = all_patterns(units)
    expected = lm.losses(masks, tokens())
    take(model)
    with FarDevice() as device:
        losses = lm.losses(masks, tokens())
    assert device.waits == []
    torch.testing.assert_close(losses.held, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_nor_does_their_divergence_from_the_dense_model(model, executor):
    lm = MaskedLM(model, units := PruningUnits.of(model), executor)
    masks = all_patterns(units)
    expected = lm.divergences(masks, tokens(), lm.dense_predictions(tokens(), 5))
    take(model)
    with FarDevice() as device:
        found = lm.divergences(masks, tokens(), lm.dense_predictions(tokens(), 5))
    assert device.waits == []
    torch.testing.assert_close(found.held, expected, rtol=1e-12, atol=1e-12)


def env_of(masks: int, executor: str = "sliced", far: bool = True) -> LLMPruningVectorEnv:
    lm = masked_lm(tiny_model("llama"), executor=executor)
    if far:
        take(lm.model)
    return LLMPruningVectorEnv(masks, problem=toy_problem(lm))


def reinforce(env: LLMPruningVectorEnv, **options: str) -> Reinforce:
    config = ReinforceConfig(masks_per_step=env.num_envs - ("control" in options), **options)
    return Reinforce(env, config, torch.full((env.units.n,), 0.5), [0.3, 0.5])


def auto(env: LLMPruningVectorEnv) -> Auto:
    scores = torch.arange(env.units.n, dtype=torch.float64)
    start = Importance(scores)
    return Auto(env, AutoConfig(population=env.num_envs, allocation=1), start)


AGENTS: dict[str, Callable[[LLMPruningVectorEnv], Agent]] = {
    "reinforce": reinforce,
    "reinforce, dense control": lambda env: reinforce(env, control="dense"),
    "reinforce, leave-one-out": lambda env: reinforce(env, baseline="leave-one-out"),
    "reinforce, antithetic": lambda env: reinforce(env, sampling="antithetic"),
    "auto": auto,
}


def learn(agent: Agent, waits: list[str]) -> list[int]:
    """Learns, and returns how many waits there had been after each step."""
    found: list[int] = []
    timesteps = STEPS * agent.step_tokens / 1024
    agent.learn(timesteps, lambda *_: found.append(len(waits)))
    assert len(found) == STEPS
    return found


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", AGENTS)
def test_a_step_hardly_waits_and_learns_what_it_learns_on_the_host(name, executor):
    expected = 1 + name.startswith("reinforce")  # for losses; and for masks drawn on the device
    near = AGENTS[name](env_of(4, executor, far=False))
    learn(near, [])
    with FarDevice() as device:
        agent = AGENTS[name](env_of(4, executor))
        waits = learn(agent, device.waits)
        steps = [after - before for before, after in zip(waits[1:-1], waits[2:], strict=True)]
        # The first step sends what stays on the device.
        assert steps == [expected] * (STEPS - 2), device.waits
        learned = agent.probabilities.cpu()
    torch.testing.assert_close(learned, near.probabilities, rtol=0, atol=1e-9)


def test_a_step_with_arrays_waits_once():
    with FarDevice() as device:
        env = env_of(3)
        masks = torch.ones(3, env.units.n).numpy()
        env.step(masks)
        device.waits.clear()
        *_, info = env.step(masks)
        assert device.waits == ["synchronize"]
    assert info["loss"].shape == (3,)
