"""Head and loss as one compiled function: the same losses, and a sentence where there is none."""

import shutil

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException

from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.budget.problem import PruningConfig, make_problem
from pgprune.data.stream import DataConfig
from pgprune.losses import tokens as scoring
from pgprune.models.load import ModelConfig


def losses(compile_head: bool) -> torch.Tensor:
    """Of two masks of an OPT model, whose head is tied."""
    lm = masked_lm(tiny_model("opt", torch.float32), executor="sliced", compile_head=compile_head)
    masks = torch.ones(2, lm.units.n, dtype=torch.uint8)
    masks[1, ::2] = 0
    return lm.losses(masks, tokens())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_losses_are_the_same(monkeypatch):
    calls, compiled = [], scoring.compiled_head_and_loss(scoring.Finish())
    monkeypatch.setattr(
        scoring, "compiled_head_and_loss", lambda finish: calls.append(1) or compiled
    )
    torch.testing.assert_close(losses(True), losses(False), rtol=1e-6, atol=1e-6)
    assert len(calls) == 2  # one for each mask, none without


def test_a_machine_that_cannot_compile_says_so(monkeypatch):
    def fail(*_: object) -> None:
        raise TorchDynamoException("no compiler\nand much more")

    monkeypatch.setattr(scoring, "compiled_head_and_loss", lambda finish: fail)
    with pytest.raises(PruningError, match=r"no compiler\); leave out --compile-head"):
        losses(True)


def test_a_model_on_several_devices_is_refused():
    model = ModelConfig("builtin", device_map="auto")
    with pytest.raises(PruningError, match="--compile-head .* --device-map"):
        make_problem(model, DataConfig(), PruningConfig(compile_head=True))
