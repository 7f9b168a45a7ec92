"""MoDeGPT against plain formulas: rates of layers, leverages, lstsq and truncated SVDs."""

import copy

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.tiny import (
    layers_of,
    masked_lm,
    projections_of,
    tiny_model,
    tokens,
    toy_problem,
    zeroed,
)
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.methods import METHODS, MethodConfig, Pruned
from pgprune.methods.modegpt import rates_of_layers
from pgprune.models.value_rotation import fit_rotations, rotate_values
from pgprune.repair.repair import repaired

WINDOWS = tokens(batch=6, length=20)


def problem_of(model, rate=0.4, granularity="values+channels", **budget) -> Problem:
    problem = toy_problem(masked_lm(model, granularity))
    return Problem(**vars(problem) | {"budget": Budget(problem.units, rate, **budget)})


def modegpt(problem: Problem, entropy: float = 0.5) -> Pruned:
    config = MethodConfig("modegpt", modegpt_entropy=entropy)
    return METHODS["modegpt"](problem, WINDOWS, 0, config)


def counts_of(pruned: Pruned, problem: Problem, kind: str) -> list[int]:
    """Units that each layer keeps of a kind."""
    counts = problem.units.kept_counts(pruned.mask[None])[0].int().tolist()
    return [n for n, group in zip(counts, problem.units.groups, strict=True) if group.kind == kind]


@torch.no_grad()
def naive_influence(model) -> torch.Tensor:
    """1 - the mean cosine before and after each layer, from what its module takes and gives."""
    found = []
    for layer in layers_of(model):
        seen = []
        hook = layer.register_forward_hook(
            lambda _, args, output, seen=seen: seen.extend((args[0], output))
        )
        model(WINDOWS)
        hook.remove()
        before, after = (part[0] if isinstance(part, tuple) else part for part in seen)
        found.append(1 - torch.cosine_similarity(before, after, dim=-1).mean())
    return torch.stack(found)


def test_rates_maximise_influence_kept_plus_entropy():
    influence = torch.tensor([0.9, 0.3, 0.1, 0.2, 0.4]).double()
    rates = rates_of_layers(influence, 0.3, 0.5)
    assert float(rates.mean()) == pytest.approx(0.3)
    # Lagrange: the derivative of s (1 - r) - e r log r is the same in all layers.
    slopes = -influence - 0.5 * (rates.log() + 1)
    torch.testing.assert_close(slopes, slopes.mean().expand(5))
    assert float(rates_of_layers(influence, 0.3, 1e6).std()) < 1e-6


def test_layers_at_the_limit_leave_the_rest_to_the_others():
    influence = torch.tensor([0.9, 0.0, 0.5, 0.6]).double()
    rates = rates_of_layers(influence, 0.4, 0.1)
    assert float(rates.max()) == pytest.approx(0.8) and float(rates.mean()) == pytest.approx(0.4)
    free = rates < 0.8 - 1e-9
    expected = torch.softmax(-influence[free] / 0.1, dim=0)
    torch.testing.assert_close(rates[free] / rates[free].sum(), expected)
    assert rates_of_layers(influence, 0.9, 0.1).tolist() == pytest.approx([0.9] * 4)


def test_layers_lose_their_rates_of_both_kinds(model):
    problem = problem_of(model)
    pruned = modegpt(problem)
    rates = rates_of_layers(naive_influence(model), 0.4, 0.5)
    torch.testing.assert_close(torch.tensor(pruned.notes["rates"]), rates.float())
    for kind, size in (("values", problem.units.sizes[0]), ("channels", 12)):
        kept = torch.tensor(counts_of(pruned, problem, kind))
        assert ((1 - kept / size) - rates).abs().max() * size <= 1.5


def test_channels_have_the_largest_leverages_and_the_weights_of_lstsq(model):
    problem = problem_of(model, granularity="channels")
    pruned = modegpt(problem)
    for layer, keep in enumerate(counts_of(pruned, problem, "channels")):
        down = projections_of(model, layer)[1]
        x = inputs_of(model, WINDOWS)[layer, "channels"].flatten(0, -2)
        mean = x.mean(0) if down.bias is not None else torch.zeros(())
        x = x - mean
        moments = x.T @ x
        ridge = 0.01 * moments.diagonal().mean()
        leverages = (moments @ (moments + ridge * torch.eye(12)).inverse()).diagonal()
        kept = leverages.argsort(descending=True)[:keep].sort().values
        assert pruned.mask.view(3, 12)[layer].nonzero().flatten().tolist() == kept.tolist()
        rows = torch.cat([x[:, kept], ridge.sqrt() * torch.eye(keep)])
        wanted = torch.cat([x @ down.weight.T, ridge.sqrt() * down.weight[:, kept].T])
        expected = torch.linalg.lstsq(rows, wanted).solution.T
        if keep == 12:
            assert (layer, "channels") not in pruned.repair.weights
            continue
        found = pruned.repair.weights[layer, "channels"]
        torch.testing.assert_close(found[:, kept], expected, rtol=0, atol=1e-5)
        assert int((found != 0).any(0).sum()) == keep


def test_rotated_values_and_outputs_are_truncated_svds():
    """With one query head a kv head: |M - its best rank-r part|^2 is the error of the outputs."""
    model = tiny_model("llama", num_key_value_heads=4, attention_bias=False)
    dense = copy.deepcopy(model)
    rotate_values(model, fit_rotations(model, WINDOWS))
    problem = problem_of(model, granularity="values")
    pruned = modegpt(problem)
    cut = zeroed(model, problem.units, pruned.mask)
    attended = inputs_of(dense, WINDOWS)[0, "heads"].flatten(0, -2).unflatten(1, (4, 8))
    rotated = inputs_of(model, WINDOWS)[0, "heads"].flatten(0, -2).unflatten(1, (4, 8))
    ranks = pruned.mask[: 4 * 8].view(4, 8).sum(1)
    assert ranks.max() - ranks.min() <= 1 and 0 < ranks.max() < 8
    for head, rank in enumerate(ranks.tolist()):
        columns = slice(8 * head, 8 * head + 8)
        before, after = (projections_of(m, 0)[0].weight[:, columns] for m in (dense, cut))
        outputs = attended[:, head] @ before.T  # (tokens, D)
        error = outputs - rotated[:, head] @ after.T
        singular = torch.linalg.svdvals(outputs)
        expected = singular[rank:].square().sum()
        torch.testing.assert_close(error.square().sum(), expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("kind", ["per-kind", "parameters"])
@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.85])
def test_every_budget_is_met(kind, scope, rate):
    problem = problem_of(tiny_model("qwen2"), rate, kind=kind, scope=scope)
    pruned = modegpt(problem, 0.05)
    assert float(problem.budget.excess(pruned.mask[None])) <= 1e-9
    with repaired(problem.lm, pruned.repair):
        assert bool(problem.lm.losses(pruned.mask[None], WINDOWS).isfinite().all())


def test_large_entropies_and_local_scope_give_equal_shares():
    model = tiny_model("llama")
    equal = modegpt(problem_of(model), 1e6), modegpt(problem_of(model, scope="local"), 0.05)
    for pruned in equal:
        channels = counts_of(pruned, problem_of(model), "channels")
        assert max(channels) - min(channels) <= 1
    assert len(set(counts_of(modegpt(problem_of(model), 0.05), problem_of(model), "channels"))) > 1
