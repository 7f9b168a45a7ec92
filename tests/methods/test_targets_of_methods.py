"""Every method keeps within two targets at once."""

import pytest
import torch
from test_methods import FEW, prune

from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.budget.bounds import bounds_of
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.budget.targets import Target
from pgprune.data.stream import CalibrationStream, DataConfig
from pgprune.data.windows import TextWindows
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.methods import METHODS


def within(method: str, *targets: str) -> Problem:
    """A problem of a method's own kind, whose layers differ in what they cache."""
    model = tiny_model("gemma2").float()
    units = PruningUnits.of(model, METHODS[method].granularities[0])
    bounds = bounds_of([Target.parse(text) for text in targets], model, units, biases=True)
    budget = Budget.within(units, bounds, METHODS[method].budgets[0])
    stream = CalibrationStream(
        TextWindows(["thequickbrownfoxjumps" * 9] * 9, letters_tokenizer(), 12), 6
    )
    lm = MaskedLM(model, units)
    return Problem(lm, units, budget, stream, stream.head(4), letters_tokenizer(), DataConfig())


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"slicegpt", "reap", "expert-frequency"}))
def test_every_method_keeps_within_two_targets(method):
    problem = within(method, "parameters<=13500", "memory<=72KB@4x32")
    try:
        mask = prune(method, problem, **FEW).mask
    except PruningError as refused:
        assert "rule of its own" in str(refused)
        return
    for bound in problem.budget.bounds:
        assert bound.value(mask) <= bound.target.limit
    assert float(problem.budget.excess(mask[None])) == 0
    assert torch.equal(mask, mask.clamp(0, 1))
