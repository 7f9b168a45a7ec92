"""stream-error against the same numbers from plain models, and its removals against enumeration."""

import sys

import pytest
import torch

from helpers.tiny import inputs_of_unit, layers_of, projections_of, tiny_model, tokens
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.metrics import METRICS
from pgprune.metrics.stream_error import LEVELLING
from pgprune.models.residual import added
from pgprune.repair.fit import DAMPING
from pgprune.repair.least_squares import LeastSquares, SecondMoments
from pgprune.repair.removal import removals

WINDOWS = tokens(batch=6, length=12)


def problem_of(units: int = 6, width: int = 2, seed: int = 0) -> tuple[LeastSquares, torch.Tensor]:
    """A projection with correlated inputs, and these."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(units * width, units * width, generator=generator, dtype=torch.float64)
    x = torch.randn(200, units * width, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(5, units * width, generator=generator, dtype=torch.float64)
    moments = SecondMoments.of(weight)
    moments.add(x, x @ weight.T)
    return LeastSquares(moments, weight, width), x


def error_without(squares: LeastSquares, x: torch.Tensor, gone: list[int], refit: bool) -> float:
    """The squared error of the output without some units, from all tokens."""
    kept = squares.everything()
    kept[gone] = False
    columns = kept.repeat_interleave(squares.width)
    target = x @ squares.weight.T
    if not refit:
        return float((target - (x * columns) @ squares.weight.T).square().sum())
    solved = torch.linalg.lstsq(x[:, columns], target).solution
    return float((target - x[:, columns] @ solved).square().sum())


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_removal_is_the_cheapest_by_enumeration(refit, seed):
    squares, x = problem_of(seed=seed)
    gone: list[int] = []
    before = 0.0
    for unit, cost in removals(squares, refit):
        errors = {
            other: error_without(squares, x, [*gone, other], refit)
            for other in range(squares.units)
            if other not in gone
        }
        assert unit == min(errors, key=errors.__getitem__)
        assert cost == pytest.approx(errors[unit] - before, rel=1e-6, abs=1e-6)
        gone.append(unit)
        before = errors[unit]
    assert sorted(gone) == list(range(squares.units))


def test_units_that_double_each_other_do_not_go_together():
    """Two equal inputs: without one the other can do everything, without both nothing can."""
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.stack([x[:, 0], x[:, 0], 0.5 * x[:, 1], 0.5 * x[:, 2]], dim=1)
    weight = torch.eye(4, dtype=torch.float64)[:3] + torch.eye(4, dtype=torch.float64)[[1, 3, 2]]
    moments = SecondMoments.of(weight)
    moments.add(x, x @ weight.T)
    order = [unit for unit, _ in removals(LeastSquares(moments, weight, damping=1e-9))]
    assert {order[0], order[-1]} <= {0, 1} or {0, 1} - set(order[:2])


def naive_scores(model, units: PruningUnits, refit: bool) -> torch.Tensor:
    """Layer by layer from a plain model's inputs and hidden states."""
    scores = torch.empty(units.n, dtype=torch.float64)
    for group in units.groups:
        seen: dict[str, torch.Tensor] = {}
        layer = layers_of(model)[group.layer]
        linear = projections_of(model, group.layer)[group.kind == "channels"]
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, seen=seen: seen.update(
                    state=(args or (kwargs["hidden_states"],))[0]
                ),
                with_kwargs=True,
            ),
            linear.register_forward_pre_hook(lambda _, args, seen=seen: seen.update(x=args[0])),
        ]
        with torch.no_grad():
            model(WINDOWS)
        for hook in hooks:
            hook.remove()
        state, x = seen["state"].flatten(0, -2), seen["x"].flatten(0, -2)
        x = x / state.square().mean(-1, keepdim=True).sqrt()
        parts = [inputs_of_unit(units, group, unit) for unit in range(group.stop - group.start)]
        x, weight = x[:, sum(parts, [])], linear.weight[:, sum(parts, [])].detach()
        moments = SecondMoments.of(weight)
        moments.add(x, x @ weight.T)
        squares = LeastSquares(moments, weight, len(parts[0]), damping=DAMPING)
        rise, largest = torch.empty(group.stop - group.start, dtype=torch.float64), 0.0
        for unit, cost in removals(squares, refit):
            rise[unit] = largest = max(largest, cost)
        scores[group.start : group.stop] = rise.log() - LEVELLING * rise.mean().log()
    return scores


@pytest.mark.parametrize(("name", "refit"), [("stream-error", False), ("stream-error-refit", True)])
@pytest.mark.parametrize(
    ("granularity", "channel_block"),
    [("heads+channels", 1), ("heads+channels", 4), ("values", 1)],
)
def test_scores_equal_those_of_a_plain_model(model, name, refit, granularity, channel_block):
    units = PruningUnits.of(model, granularity, channel_block)
    lm, budget = MaskedLM(model, units), Budget(units, 0.5)
    found = METRICS[name](lm, WINDOWS, budget, 0)
    expected = naive_scores(model, units, refit)
    torch.testing.assert_close(found.scores, expected, rtol=1e-5, atol=1e-5)
    assert not found.local
    assert torch.equal(found.mask(budget), budget.round(found.scores))


def test_a_unit_without_weights_goes_first():
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    model.model.layers[1].mlp.down_proj.weight.data[:, 3] = 0
    for name in ("stream-error", "stream-error-refit"):
        scores = METRICS[name](MaskedLM(model, units), WINDOWS, Budget(units, 0.5), 0).scores
        group = next(g for g in units.groups if (g.layer, g.kind) == (1, "channels"))
        assert bool(scores.isfinite().all())
        assert int(scores[group.start : group.stop].argmin()) == 3


def test_overflows_are_refused():
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    with pytest.raises(PruningError, match="layer 1 overflow"):
        METRICS["stream-error"](MaskedLM(model, units), WINDOWS, Budget(units, 0.5), 0)


@pytest.mark.parametrize("family", ["gemma3_text", "granite"])
def test_errors_are_those_of_the_stream_behind_a_norm_or_a_multiplier(family, monkeypatch):
    """To first order: the least important channel of a layer, removed alone from a tiny share."""
    module = sys.modules["pgprune.metrics.stream_error"]
    monkeypatch.setattr(module, "DAMPING", 1e-9)  # a part of errors
    model = tiny_model(family)
    lm = MaskedLM(model, PruningUnits.of(model, "channels"))
    found = METRICS["stream-error"](lm, WINDOWS, Budget(lm.units, 0.5), 0, levelling=0.0)
    (group,) = (group for group in lm.units.groups if group.layer == 1)
    unit = int(found.scores[group.start : group.stop].argmin())
    *_, seen = (seen for seen, _ in zip(lm.observe(lm.units.ones(), WINDOWS), "ab", strict=False))
    (state,), (inputs,) = seen.states, [mlp for _, mlp in seen.inputs]
    down, step = projections_of(model, 1)[1], 1e-3
    with torch.no_grad():
        output = down(inputs)
        change = -step * inputs[..., unit, None] * down.weight[:, unit]
        moved, still = (
            added(seen.module, lm.family, "channels", y) for y in (output + change, output)
        )
        # A norm also removes what lies along the output; the metric leaves that out.
        along = (change * output).sum(-1, keepdim=True) / output.square().sum(-1, keepdim=True)
        moved = moved + (still * along if lm.family.mlp_end else 0)
    error = ((moved - still) / step).square().sum(-1) / state.square().mean(-1)
    expected = float(found.scores[group.start + unit].exp())
    assert float(error.sum()) == pytest.approx(expected, rel=0.01)
