"""Rotated values: the same model, whose value dimensions cost what their singular values say."""

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.tiny import exact_norms, layers_of, masked_lm, projections_of, tiny_model, tokens
from pgprune.models.value_rotation import fit_rotations, rotate_values

WINDOWS = tokens(batch=6, length=12)


def rotated(model):
    rotations = fit_rotations(model, WINDOWS, pass_tokens=30)  # several chunks of windows
    rotate_values(model, rotations)
    return rotations


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_a_rotated_model_computes_what_it_did(model, dtype, atol):
    model = exact_norms(model).to(dtype)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        expected = model(tokens()).logits
        rotated(model)
        torch.testing.assert_close(model(tokens()).logits, expected, rtol=0, atol=atol)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    values = ("v_proj.weight", "v_proj.bias", "o_proj.weight", "out_proj.weight")
    assert changed == {name for name in before if name.endswith(values)}


def lost_of(model, layer: int, head: int, pruned: torch.Tensor) -> float:
    """What the output loses without some dimensions of a kv head, summed over its query heads."""
    shape = masked_lm(model, "values").units.shapes[layer]
    output, _ = projections_of(model, layer)
    inputs = inputs_of(model, WINDOWS)[layer, "heads"].flatten(0, -2)
    heads = inputs.unflatten(-1, (shape.kv_heads, -1, shape.head_dim))[:, head]  # (n, q, d)
    columns = output.weight.detach().unflatten(1, (shape.kv_heads, -1, shape.head_dim))[:, head]
    lost = torch.einsum("nqd,oqd->nqo", heads * pruned, columns)
    return float(lost.square().sum() / len(heads))


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_no_other_basis_loses_less(family):
    """Of one query head to a kv head, by Eckart and Young and against random bases."""
    model = tiny_model(family, num_key_value_heads=4)
    output, _ = projections_of(model, 1)
    x = inputs_of(model, WINDOWS)[1, "heads"].flatten(0, -2)[:, :8]
    squares = torch.linalg.svdvals(x @ output.weight[:, :8].detach().T).square() / len(x)
    rotated(model)
    for kept in (0, 1, 3, 7):
        pruned = (torch.arange(8) >= kept).double()
        assert lost_of(model, 1, 0, pruned) == pytest.approx(float(squares[kept:8].sum()), rel=1e-4)
    alone = [lost_of(model, 1, 0, torch.eye(8).double()[j]) for j in range(8)]
    assert alone == pytest.approx(squares[:8].tolist(), rel=1e-3, abs=1e-9 * float(squares[0]))


def test_groups_of_query_heads_lose_less_than_before(model):
    layer, head, half = 1, 0, masked_lm(model, "values").units.shapes[1].head_dim // 2
    width = masked_lm(model, "values").units.shapes[1].head_dim
    alone = [lost_of(model, layer, head, torch.eye(width).double()[j]) for j in range(width)]
    lowest = torch.zeros(width).double()
    lowest[torch.tensor(alone).argsort()[:half]] = 1
    before = lost_of(model, layer, head, lowest)
    rotated(model)
    assert lost_of(model, layer, head, (torch.arange(width) >= width - half).double()) < before / 2


def test_dead_heads_and_no_variance_harm_nothing():
    model = tiny_model("llama")
    with torch.no_grad():
        projections_of(model, 0)[0].weight.zero_()
        layers_of(model)[1].self_attn.v_proj.weight.zero_()
        layers_of(model)[1].self_attn.v_proj.bias.zero_()
        expected = model(tokens()).logits
        assert bool(rotated(model).isfinite().all())
        torch.testing.assert_close(model(tokens()).logits, expected, rtol=0, atol=1e-5)
