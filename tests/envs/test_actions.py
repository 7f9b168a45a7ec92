"""Actions of every type that can hold them mean the same; others are refused in a sentence."""

import numpy as np
import pytest
import torch

from pgprune import PruningError
from pgprune.envs import (
    DensityAction,
    LevelAction,
    LLMPruningEnv,
    LLMPruningVectorEnv,
    ScoreAction,
)

SAME = {
    "list": np.ndarray.tolist,
    "tuple": tuple,
    "unsigned": lambda ones: ones.astype(np.uint64),
    "byte order": lambda ones: ones.astype(">i4"),
    "booleans": lambda ones: ones.astype(bool),
    "tensor": torch.tensor,
    "read-only": lambda ones: np.broadcast_to(1, ones.shape),
}
FLOATS = {
    "byte order": lambda ones: ones.astype(">f4"),
    "long": lambda ones: ones.astype(np.longdouble),
    "bfloat16": lambda ones: torch.tensor(ones).bfloat16(),
    "gradient": lambda ones: torch.tensor(ones).double().requires_grad_(),
}
WRONG = {
    "nothing": lambda ones: None,
    "objects": lambda ones: ones.astype(object),
    "words": lambda ones: ones.astype(str),
    "complex": lambda ones: ones.astype(complex),
    "complex tensor": lambda ones: torch.tensor(ones).to(torch.complex64),
    "sparse": lambda ones: torch.tensor(ones).to_sparse(),
    "meta": lambda ones: torch.tensor(ones).to("meta"),
    "ragged": lambda ones: [[1], 2],
    "one number": lambda ones: 1,
    "a row too many": lambda ones: ones[None],
}


@pytest.fixture(params=["masks", "scores", "densities", "levels"])
def env(request, problem, tmp_path):
    """An environment that takes whole numbers, among others, and has been reset."""
    plain = LLMPruningEnv(problem=problem)
    wrap = {
        "masks": lambda env: env,
        "scores": ScoreAction,
        "densities": lambda env: DensityAction(env, np.arange(problem.units.n)),
        "levels": lambda env: LevelAction(env, tmp_path, windows=4),
    }[request.param]
    env = wrap(plain)
    env.reset(seed=0)
    return env


def reward(env, action) -> float:
    env.reset(seed=0)
    return env.step(action)[1]


def ones(env) -> np.ndarray:
    return np.ones(env.action_space.shape, dtype=np.int64)


def test_types_of_one_action(env):
    expected = reward(env, ones(env))
    for name, kind in (SAME if isinstance(env, LevelAction) else SAME | FLOATS).items():
        assert reward(env, kind(ones(env))) == expected, name


@pytest.mark.parametrize("kind", WRONG.values(), ids=WRONG)
def test_what_is_no_action(env, kind):
    with pytest.raises(PruningError):
        env.step(kind(ones(env)))


def test_rows_cannot_be_reset_alone(problem):
    envs = LLMPruningVectorEnv(3, problem=problem, horizon=2)
    envs.reset(seed=0, options={"reset_mask": np.array([True, True, True])})
    with pytest.raises(PruningError, match="all rows begin together"):
        envs.reset(options={"reset_mask": np.array([True, False, True])})
