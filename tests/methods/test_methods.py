"""Whole methods: what all have in common, and FLAP, SLEB and 2SSP by their own rules."""

import copy
import itertools
import re
from collections.abc import Iterator

import pytest
import torch

from helpers.inputs import inputs_of
from helpers.mixtures import MIXTURES, family_with
from helpers.tiny import (
    CONFIGS,
    layers_of,
    letters_tokenizer,
    projections_of,
    tiny_model,
    tokens,
    toy_units,
    zeroed,
)
from helpers.tiny import FEW as FAMILIES_OF_ALL_TESTS
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.data.stream import CalibrationStream, DataConfig
from pgprune.data.windows import TextWindows
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES, PruningUnits
from pgprune.methods import METHODS, MethodConfig
from pgprune.methods.two_ssp import split_rate
from pgprune.metrics import METRICS
from pgprune.metrics.base import EXPERTS
from pgprune.metrics.initialization import initial_probabilities
from pgprune.models.rows import FAMILIES as ROWS
from pgprune.repair.repair import repaired

WINDOWS = tokens(batch=6, length=12)
FEW = {
    "learning_timesteps": 1,
    "bonsai_masks": 10,
    "bonsai_windows": 2,
    "bonsai_fraction": 0.2,
    "gisp_fraction": 0.1,
}


def problem_of(model, method, rate=0.34, granularity=None, **budget) -> Problem:
    """A problem of a method's own kind."""
    units = PruningUnits.of(model, granularity or METHODS[method].granularities[0])
    budget.setdefault("kind", METHODS[method].budgets[0])
    budget.setdefault("scope", "uniform" if units.multiply else "global")
    tokenizer = letters_tokenizer()
    stream = CalibrationStream(TextWindows(["thequickbrownfoxjumps" * 9] * 9, tokenizer, 12), 6)
    lm = MaskedLM(model, units)
    return Problem(
        lm, units, Budget(units, rate, **budget), stream, stream.head(4), tokenizer, DataConfig()
    )


def prune(method, problem, seed=0, **knobs):
    return METHODS[method](problem, WINDOWS, seed, MethodConfig(method=method, **knobs))


def loss_of(model, windows) -> float:
    with torch.no_grad():
        return float(model(windows, labels=windows).loss)


@pytest.mark.parametrize(
    ("method", "granularity"),
    [
        (name, g)
        for name, method in METHODS.items()
        for g in method.granularities
        if g not in EXPERTS
    ],
)
def test_every_method_prunes_every_family_within_the_budget(model, method, granularity):
    assert_prunes_within_the_budget(model, method, granularity)


def methods_of_the_other_families() -> Iterator[tuple[str, str, str]]:
    """Families, methods and granularities that the row of the family does not refuse."""
    for family in (CONFIGS | MIXTURES).keys() - FAMILIES_OF_ALL_TESTS:
        row = ROWS[family]
        for name, method in METHODS.items():
            if name == "slicegpt" and not row.sliced:
                continue
            for granularity in method.granularities:
                kinds = GRANULARITIES[granularity]
                unfit = "channels" if row.experts else "experts"
                if unfit not in kinds and not row.refused.keys() & set(kinds):
                    yield family, name, granularity


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method", "granularity"), sorted(methods_of_the_other_families())
)
def test_every_method_prunes_the_other_families_too(family, method, granularity):
    assert_prunes_within_the_budget(tiny_model(family), method, granularity)


def assert_prunes_within_the_budget(model, method, granularity) -> None:
    problem = problem_of(model, method, granularity=granularity)
    weights = copy.deepcopy(model.state_dict())
    pruned = prune(method, problem, **FEW, barrier=0)
    assert pruned.mask.shape == (problem.units.n,) and pruned.mask.dtype == torch.uint8
    if pruned.slices is None:
        assert float(problem.budget.excess(pruned.mask[None])) <= 1e-9
        assert 0 < pruned.mask.sum() < problem.units.n
    if method in METRICS:  # which an agent may start from
        start = initial_probabilities(pruned.importance, problem.budget)
        assert float(problem.budget.excess(start[None])) <= 1e-9
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), f"{method} has changed {name}"
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_mask(method):
    masks = []
    for seed in (1, 1):
        problem = problem_of(
            tiny_model(family_with(METHODS[method].granularities[0], "qwen2")), method
        )
        masks.append(prune(method, problem, seed, **FEW, barrier=0).mask)
    assert torch.equal(*masks)


@pytest.mark.parametrize(
    ("method", "granularity"),
    [
        (name, g)
        for name, method in METHODS.items()
        for g in GRANULARITIES
        if g not in method.granularities and not method.slices
    ],
)
def test_units_that_do_not_fit_are_refused_before_any_work(method, granularity):
    problem = problem_of(
        tiny_model(family_with(granularity)), method, granularity=granularity, kind="per-kind"
    )
    says = rf"{method} does not .* granularity '{re.escape(granularity)}'"
    with pytest.raises(PruningError, match=says):
        prune(method, problem)
    assert problem.lm.meter.tokens == 0


@pytest.mark.parametrize("method", ["llm-pruner", "layerwise-taylor", "magnitude", "sleb"])
def test_a_rate_that_protected_layers_make_impossible_is_refused(method):
    model = tiny_model("llama", num_hidden_layers=8)
    granularity = "layers" if method == "magnitude" else None
    problem = problem_of(model, method, 0.8, granularity)
    with pytest.raises(PruningError, match=r"rate 0\.8 .* .*0\.75"):
        prune(method, problem)
    assert problem.lm.meter.tokens == 0
    knobs = {"protect_layers": False, "barrier": 0}
    assert 0 < int(prune(method, problem, **knobs).mask.sum()) < 0.25 * problem.units.n


def test_flaps_biases_are_the_mean_of_what_the_dense_model_would_add(model):
    problem = problem_of(model, "flap", rate=0.5)
    pruned = prune("flap", problem)
    plain = zeroed(model, problem.units, pruned.mask)
    for layer, kind in itertools.product(range(3), ("heads", "channels")):
        dense, cut = (projections_of(m, layer)[kind == "channels"] for m in (model, plain))
        mean = inputs_of(model, WINDOWS)[layer, kind].flatten(0, 1).mean(0)
        if torch.equal(dense.weight, cut.weight):
            assert (layer, kind) not in pruned.repair.biases
            continue
        bias = (dense.weight - cut.weight) @ mean + (0 if dense.bias is None else dense.bias)
        torch.testing.assert_close(pruned.repair.biases[layer, kind], bias, rtol=0, atol=1e-6)
        cut.bias = torch.nn.Parameter(bias)
    with repaired(problem.lm, pruned.repair):
        loss = problem.lm.losses(pruned.mask[None], WINDOWS).mean()
    assert float(loss) == pytest.approx(loss_of(plain, WINDOWS), abs=1e-6)


def without(model, layers) -> torch.nn.Module:
    """A plain copy of the model that lacks some layers."""
    plain = copy.deepcopy(model)
    for layer in sorted(layers, reverse=True):
        del layers_of(plain)[layer]
    plain.config.use_cache = False
    return plain


@pytest.mark.parametrize("barrier", [0, 1])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_sleb_removes_the_layer_that_is_missed_least_again_and_again(family, barrier):
    model = tiny_model(family, num_hidden_layers=6)
    gone, losses = [], []
    for _ in range(3):
        left = [layer for layer in range(barrier, 6 - barrier) if layer not in gone]
        found = {layer: loss_of(without(model, [*gone, layer]), WINDOWS) for layer in left}
        gone.append(min(found, key=found.get))
        losses.append(found[gone[-1]])
    pruned = prune("sleb", problem_of(model, "sleb", rate=0.5), barrier=barrier)
    assert pruned.notes["removed"] == gone
    assert pruned.notes["losses"] == pytest.approx(losses, abs=1e-6)
    assert pruned.mask.tolist() == [int(layer not in gone) for layer in range(6)]


def test_sleb_of_blocks_removes_as_many_of_each_kind_as_the_budget_wants():
    model = tiny_model("llama", num_hidden_layers=6)
    problem = problem_of(model, "sleb", rate=0.5, granularity="blocks")
    mask = prune("sleb", problem).mask
    assert torch.bincount(problem.units.kind[mask.bool()]).tolist() == [3, 3]
    assert bool(mask[(problem.units.layer == 0) | (problem.units.layer == 5)].all())


def test_where_blocks_cost_differently_what_still_fits_returns():
    problem = problem_of(
        tiny_model("llama"), "sleb", rate=0.3, granularity="blocks", kind="parameters"
    )
    mask = prune("sleb", problem, barrier=0).mask
    left = problem.budget.pools[0].capacity - problem.units.kept_parameters(mask)
    assert left >= 0
    assert not bool((problem.units.cost[mask == 0] <= left).any())


def test_barriers_that_leave_nothing_or_too_little_are_refused():
    problem = problem_of(tiny_model("llama", num_hidden_layers=6), "sleb", rate=0.5)
    with pytest.raises(PruningError, match="barrier 3 .* 6 layers"):
        prune("sleb", problem, barrier=3)
    with pytest.raises(PruningError, match=r"rate 0\.5 .*0\.3333"):
        prune("sleb", problem, barrier=2)
    assert problem.lm.meter.tokens == 0


def test_2ssp_is_channels_by_norm_then_attention_by_loss(model):
    problem = problem_of(model, "2ssp", rate=0.5)
    units = problem.units
    heads = units.kind == 0
    split = split_rate(units, 0.5)
    inputs = inputs_of(model, WINDOWS)
    norms = [inputs[layer, "channels"].norm(dim=1).mean(0) for layer in range(3)]  # (channels,)
    mask = units.ones()
    for group in (group for group in units.groups if group.kind == "channels"):
        worst = norms[group.layer].argsort()[: int(12 * (1 - split.kept_channels) + 1e-9)]
        mask[group.start : group.stop][worst] = 0
    gone = []
    for _ in range(split.attention_blocks):
        found = {}
        for layer in set(range(3)) - set(gone):
            tried = mask.masked_fill(heads & (units.layer == layer), 0)
            found[layer] = loss_of(zeroed(model, units, tried), WINDOWS)
        gone.append(min(found, key=found.get))
        mask[heads & (units.layer == gone[-1])] = 0
    pruned = prune("2ssp", problem)
    assert pruned.notes["removed_attention"] == gone
    assert torch.equal(pruned.mask[heads], mask[heads])
    kept = problem.units.kept_shares(pruned.mask[None])[0]
    channels = [float(s) for s, g in zip(kept, units.groups, strict=True) if g.kind == "channels"]
    assert max(channels) - min(channels) <= 1 / 12 + 1e-9
    for group in (group for group in units.groups if group.kind == "channels"):
        kept = pruned.mask[group.start : group.stop][norms[group.layer].argsort(descending=True)]
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("channels", [2, 8, 40])
def test_2ssps_two_stages_remove_what_the_rate_asks_for(rate, channels):
    units = toy_units(layers=10, kv_heads=2, channels=channels)
    attention, mlp = 2 * 7, 3 * channels
    blocks, kept = split_rate(units, rate)
    removed = blocks * attention + 10 * mlp * (1 - kept)
    assert removed == pytest.approx(rate * units.prunable)
    formula = round(10 * rate ** (mlp / attention / 1.5))
    feasible = rate * units.prunable - 10 * mlp <= formula * attention <= rate * units.prunable
    assert blocks == formula or not feasible
