"""Down and up projections of gated MLPs in turns, against reference solvers."""

import pytest
import torch

from helpers.masks import patterns
from helpers.tiny import layers_of, masked_lm, tokens
from pgprune.masking.executors import EXECUTORS
from pgprune.repair.fit import fit_repair
from pgprune.repair.gated_mlp import GatedMLP, Tokens
from pgprune.repair.repair import repaired

CHANNELS, INPUTS, OUTPUTS = 4, 3, 5


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def parts():
    """Inputs, gates and targets of 60 tokens, and dense weights of the up and down projection."""
    return (
        normal(60, INPUTS), normal(60, CHANNELS) + 0.5, normal(60, OUTPUTS) + 1,
        normal(CHANNELS, INPUTS, seed=1), normal(OUTPUTS, CHANNELS, seed=2),
    )  # fmt: skip


def mlp_of(parts, damping=0.01, biased=False) -> GatedMLP:
    *of_tokens, up, down = parts
    chunks = zip(*(tensor.split(25) for tensor in of_tokens), strict=True)
    return GatedMLP([Tokens(*chunk) for chunk in chunks], up, down, damping, biased)


@pytest.mark.parametrize("biased", [False, True])
def test_the_error_falls_at_every_half_step(parts, biased):
    errors: list[float] = []
    up, down, bias = mlp_of(parts, biased=biased).fit(rounds=6, record=errors.append)
    assert len(errors) == 12
    assert all(after <= before for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < errors[0]
    assert (bias is None) == (not biased)
    assert mlp_of(parts, biased=biased).error(up, down) <= errors[-1]


@pytest.mark.parametrize("biased", [False, True])
def test_each_half_step_is_a_least_squares_solution(parts, biased):
    inputs, gates, targets, *_ = parts

    def centred(rows):
        return rows - rows.mean(0) if biased else rows

    def residual(up, down):
        return centred((gates * (inputs @ up.T)) @ down.T - targets)

    mlp = mlp_of(parts, damping=1e-12, biased=biased)
    start, down, bias = mlp.fit(rounds=0)
    channels = gates * (inputs @ start.T)
    expected = torch.linalg.lstsq(centred(channels), centred(targets)).solution.T
    torch.testing.assert_close(down, expected)
    if biased:
        torch.testing.assert_close(bias, (targets - channels @ down.T).mean(0))

    up = mlp.solve_up(start, down, steps=50)  # more steps than unknowns
    columns = [
        residual(unit.view(CHANNELS, INPUTS), down) + centred(targets)
        for unit in torch.eye(CHANNELS * INPUTS, dtype=torch.float64)
    ]
    matrix = torch.stack([column.flatten() for column in columns], dim=1)
    solution = torch.linalg.lstsq(matrix, centred(targets).flatten()).solution
    torch.testing.assert_close(up.flatten(), solution)


def test_damping_keeps_weights_where_they_are(parts):
    up, down, _ = mlp_of(parts, damping=1e9).fit()
    torch.testing.assert_close(up, parts[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(down, parts[4], rtol=0, atol=1e-6)


def test_channels_that_nothing_passes_do_no_harm(parts):
    gates = parts[1].clone()
    gates[:, 2] = 0
    up, down, _ = mlp_of((parts[0], gates, *parts[2:])).fit()
    assert bool(up.isfinite().all() and down.isfinite().all())
    torch.testing.assert_close(up[2], parts[3][2])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_repair_in_turns_is_nearer_to_the_dense_model_where_mlps_are_gated(model, executor):
    ids = tokens(batch=8, length=20)
    lm = masked_lm(model, executor=executor)
    some = patterns(lm.units)["some channels"]
    mask = torch.where(lm.units.layer == 2, some, 1)  # so that only the last MLP is refitted
    wanted = lm.logits(lm.units.ones()[None], ids)
    distances = []
    for how in ("least-squares", "alternating"):
        found = fit_repair(lm, mask, ids, how)
        assert set(found.weights) == {(2, "channels"), (2, "up")} - {
            (2, "up") for _ in [0] if how == "least-squares" or not lm.family.gated
        }
        with repaired(lm, found):
            distances.append(float((lm.logits(mask[None], ids) - wanted).square().mean()))
    assert distances[1] < 0.95 * distances[0] if lm.family.gated else distances[1] == distances[0]


def test_a_repair_in_turns_is_the_layer_fitted_on_its_own(model):
    """The weights in a model are those of ``GatedMLP`` on what a plain model shows."""
    if model.config.model_type == "opt":
        pytest.skip("OPT's MLPs have no gate")
    ids, layer = tokens(batch=8, length=20), layers_of(model)[0]
    lm = masked_lm(model, "channels")
    mask = patterns(lm.units)["some"]
    kept = mask[lm.units.layer == 0].bool()
    up, down = layer.mlp.up_proj, layer.mlp.down_proj
    seen = {}
    hooks = [
        linear.register_forward_hook(
            lambda module, args, out: seen.update({module: (args[0], out)})
        )
        for linear in (up, down)
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    inputs, outputs = (part.flatten(0, 1) for part in seen[up])
    channels, targets = (part.flatten(0, 1) for part in seen[down])
    weight = up.weight
    if up.bias is not None:
        inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
        weight = torch.cat([weight, up.bias[:, None]], dim=1)
    data = Tokens(inputs, (channels / outputs)[:, kept], targets)
    expected_up, expected_down, _ = GatedMLP(
        [data], weight[kept], down.weight[:, kept], 0.01, biased=down.bias is not None
    ).fit()
    found = fit_repair(lm, mask, ids, "alternating")
    torch.testing.assert_close(
        found.weights[0, "up"][kept], expected_up[:, : up.in_features], rtol=0, atol=1e-4
    )
    torch.testing.assert_close(
        found.weights[0, "channels"][:, kept], expected_down, rtol=0, atol=1e-4
    )
    assert not found.weights[0, "up"][~kept].any()
    assert ((0, "up") in found.biases) == (up.bias is not None)
