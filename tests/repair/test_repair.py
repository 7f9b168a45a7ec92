"""Repair against reference solvers, on what plain Hugging Face models compute."""

import pytest
import torch

from helpers.masks import patterns
from helpers.tiny import (
    inputs_of_unit,
    layers_of,
    masked_lm,
    projections_of,
    tiny_model,
    tokens,
    zeroed,
)
from pgprune import PruningError
from pgprune.budget.problem import PruningConfig, make_problem
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.perplexity import perplexity
from pgprune.metrics import METRICS
from pgprune.models.load import ModelConfig
from pgprune.repair.fit import REPAIRS, fit_repair
from pgprune.repair.repair import Repair, repaired

WINDOWS = tokens(batch=6, length=20)  # 120 tokens
PROJECTIONS = ("heads", "channels")


def some(lm: MaskedLM) -> torch.Tensor:
    return patterns(lm.units)["some"]


def seen_by(model, layer) -> dict[str, torch.Tensor]:
    """Inputs of a layer's projections and hidden states around its blocks, (tokens, width)."""
    output, down = projections_of(model, layer)
    found = {}
    hooks = [
        output.register_forward_pre_hook(lambda _, args: found.update(heads=args[0])),
        down.register_forward_pre_hook(lambda _, args: found.update(channels=args[0])),
        layers_of(model)[layer].register_forward_hook(
            lambda _, args, out: found.update(before=args[0], after=out)
        ),
    ]
    with torch.no_grad():
        model(WINDOWS)
        for hook in hooks:
            hook.remove()
        found = {k: (v[0] if isinstance(v, tuple) else v).flatten(0, -2) for k, v in found.items()}
        return found | {"between": found["before"] + output(found["heads"])}


def kept_inputs(linear, units, layer, kind, mask) -> torch.Tensor | None:
    """The inputs of a projection that a mask keeps, (inputs,) bool; None if its block is pruned."""
    kept = torch.ones(linear.in_features, dtype=torch.bool)
    blocks = {"heads": ("attention", "layer"), "channels": ("mlp", "layer")}[kind]
    for group in (group for group in units.groups if group.layer == layer):
        part = mask[group.start : group.stop].bool()
        if group.projection == kind:
            for unit, keep in enumerate(part):
                kept[inputs_of_unit(units, group, unit)] = keep
        elif group.kind in blocks and not part[0]:
            return None
    return kept


def reference_fit(linear, inputs, targets, kept, damping, counts):
    """Weight and bias by lstsq on stacked rows: one for each token, then one for each input."""
    mean_input, mean_target = ((counts @ x) / counts.sum() for x in (inputs, targets))
    if linear.bias is not None:
        inputs, targets = inputs - mean_input, targets - mean_target
    inputs, targets = (counts.sqrt()[:, None] * x for x in (inputs, targets))
    ridge = (damping * inputs.square().sum(0).mean()).sqrt()
    weight = torch.zeros_like(linear.weight)
    if kept.any():
        rows = torch.cat([inputs[:, kept], ridge * torch.eye(int(kept.sum()))])
        wanted = torch.cat([targets, ridge * linear.weight[:, kept].T])
        weight[:, kept] = torch.linalg.lstsq(rows, wanted, driver="gelsd").solution.T
    return weight, None if linear.bias is None else mean_target - weight @ mean_input


@torch.no_grad()
def reference_repair(model, units, mask, damping, relative=False):
    """A plain copy of the model without what is pruned, repaired by least squares."""
    smaller = zeroed(model, units, mask)
    for layer in range(units.layers):
        dense = seen_by(model, layer)
        for kind, linear, own in zip(
            PROJECTIONS, projections_of(smaller, layer), projections_of(model, layer), strict=True
        ):
            kept = kept_inputs(linear, units, layer, kind, mask)
            if kept is None:
                continue
            pruned = seen_by(smaller, layer)
            before, after = {"heads": ("before", "between"), "channels": ("between", "after")}[kind]
            target = dense[after] - pruned[before]
            squares = dense[after].square().mean(1)  # (tokens,)
            counts = 1 / squares if relative else torch.ones_like(squares)
            weight, bias = reference_fit(own, pruned[kind], target, kept, damping, counts)
            linear.weight.copy_(weight)
            if bias is not None:
                linear.bias.copy_(bias)
    return smaller


def same_model(lm, mask, found, expected) -> None:
    """The model under the mask with the repair gives what the expected plain model gives."""
    with torch.no_grad():
        logits = expected(WINDOWS).logits
    with repaired(lm, found):
        torch.testing.assert_close(lm.logits(mask[None], WINDOWS)[0], logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("granularity", "relative"),
    [
        *[(kind, False) for kind in ("heads+channels", "heads", "values", "blocks", "layers")],
        ("heads+channels", True),
        ("values", True),
    ],
)
def test_least_squares_is_what_a_reference_solver_finds(model, granularity, relative):
    lm = masked_lm(model, granularity)
    lm.pass_tokens = 50  # several chunks of windows
    mask = some(lm)
    expected = reference_repair(model, lm.units, mask, 0.1, relative)
    found = fit_repair(lm, mask, WINDOWS, "least-squares", damping=0.1, relative=relative)
    assert found.weights
    for (layer, kind), weight in found.weights.items():
        linear = projections_of(expected, layer)[PROJECTIONS.index(kind)]
        torch.testing.assert_close(weight, linear.weight, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.biases.get((layer, kind)), linear.bias, rtol=0, atol=1e-5)
    same_model(lm, mask, found, expected)


@pytest.mark.parametrize("pattern", ["all heads of layer 1", "all channels of layer 1"])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_projection_without_inputs_keeps_its_bias_at_most(model, executor, pattern):
    lm = masked_lm(model, executor=executor)
    mask = patterns(lm.units)[pattern]
    found = fit_repair(lm, mask, WINDOWS, "least-squares")
    kind = pattern.split()[1]
    assert not found.weights[1, kind].any()
    assert ((1, kind) in found.biases) == (lm.linear(1, kind).bias is not None)
    same_model(lm, mask, found, reference_repair(model, lm.units, mask, damping=0.01))


def test_what_lost_nothing_stays_as_it_is_and_what_is_gone_stays_gone():
    lm = masked_lm(tiny_model("llama"), "blocks")
    mask = lm.units.ones()
    mask[[1, 4]] = 0  # the MLP of layer 0 and the attention of layer 2
    assert list(fit_repair(lm, mask, WINDOWS, "least-squares").weights) == [
        (1, "heads"),
        (1, "channels"),
        (2, "channels"),
    ]
    for how in REPAIRS:
        assert fit_repair(lm, lm.units.ones(), WINDOWS, how) == Repair()


@pytest.mark.parametrize("granularity", ["heads+channels", "layers"])
def test_repair_brings_the_last_hidden_states_nearer_to_the_dense_models(model, granularity):
    lm = masked_lm(model, granularity)
    mask = patterns(lm.units)["layer 1" if granularity == "layers" else "some"]
    wanted = lm.logits(lm.units.ones()[None], WINDOWS)

    def distance():
        return float((lm.logits(mask[None], WINDOWS) - wanted).square().mean())

    before = distance()
    with repaired(lm, fit_repair(lm, mask, WINDOWS, "least-squares")):
        assert distance() < 0.9 * before


@pytest.mark.parametrize("executor", EXECUTORS)
@torch.no_grad()
def test_bias_is_what_pruned_inputs_add_on_average(model, executor):
    lm = masked_lm(model, executor=executor)
    mask = some(lm)
    expected = zeroed(model, lm.units, mask)
    for layer in range(3):
        for kind, linear, own in zip(
            PROJECTIONS, projections_of(expected, layer), projections_of(model, layer), strict=True
        ):
            pruned = ~kept_inputs(linear, lm.units, layer, kind, mask)
            mean = seen_by(expected, layer)[kind].mean(0)
            bias = own.weight[:, pruned] @ mean[pruned]
            linear.bias = torch.nn.Parameter(bias if own.bias is None else own.bias + bias)
    found = fit_repair(lm, mask, WINDOWS, "bias")
    assert not found.weights
    for (layer, kind), bias in found.biases.items():
        linear = projections_of(expected, layer)[PROJECTIONS.index(kind)]
        torch.testing.assert_close(bias, linear.bias, rtol=0, atol=1e-10)
    same_model(lm, mask, found, expected)


@pytest.mark.parametrize("how", REPAIRS)
def test_applied_puts_the_dense_model_back_bit_for_bit(model, how):
    lm = masked_lm(model)
    before = dict(model.named_parameters())
    values = {name: parameter.clone() for name, parameter in before.items()}
    found = fit_repair(lm, some(lm), WINDOWS, how)
    with pytest.raises(KeyError), repaired(lm, found):
        assert any(before.get(name) is not p for name, p in model.named_parameters())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise KeyError
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())
    assert all(torch.equal(values[name], parameter) for name, parameter in after.items())


def test_a_repair_is_saved_and_loaded(tmp_path):
    lm = masked_lm(tiny_model("opt", torch.bfloat16))
    found = fit_repair(lm, some(lm), WINDOWS, "least-squares")
    found.save(tmp_path / "repair.safetensors")
    loaded = Repair.load(tmp_path / "repair.safetensors")
    for name in ("weights", "biases"):
        mine, theirs = getattr(found, name), getattr(loaded, name)
        assert sorted(mine) == sorted(theirs)
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert all(tensor.dtype == torch.bfloat16 for tensor in theirs.values())


def test_a_damaged_or_foreign_repair_is_refused(tmp_path):
    path = tmp_path / "repair.safetensors"
    with pytest.raises(PruningError, match="missing or damaged"):
        Repair.load(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(PruningError, match="missing or damaged"):
        Repair.load(path)
    lm = masked_lm(tiny_model("llama"))
    for foreign in (
        Repair(weights={(0, "heads"): torch.zeros(32, 31)}),
        Repair(biases={(3, "heads"): torch.zeros(32)}),
        Repair(biases={(0, "tails"): torch.zeros(32)}),
    ):
        with pytest.raises(PruningError, match="of another model"), repaired(lm, foreign):
            pass


def test_repair_mends_a_real_model(assets):
    text = f"{assets}/text/tinystories/tinystories_1000_clean.jsonl"
    data = DataConfig(f"{text}[:500]", f"{text}[500:]", evaluation_windows=20)
    problem = make_problem(
        ModelConfig(f"{assets}/models/stories260K"), data, PruningConfig(prune_rate=0.5)
    )
    lm, windows = problem.lm, problem.stream.head(32)
    (evaluation,) = evaluation_windows(data, problem.tokenizer).values()
    mask = METRICS["wanda-sp"](lm, windows, problem.budget, 0).mask(problem.budget)
    found = [perplexity(lm, mask, evaluation)]
    for how in REPAIRS:
        with repaired(lm, fit_repair(lm, mask, windows, how)):
            found.append(perplexity(lm, mask, evaluation))
    plain, bias, least_squares, alternating = found
    assert alternating < 0.9 * least_squares < 0.9 * 0.7 * bias < 0.9 * 0.7 * 0.7 * plain
