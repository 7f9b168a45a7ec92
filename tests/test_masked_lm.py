"""Invariant 1: masked == sliced == a model whose pruned weights are gone, for every pattern."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pgprune import PruningError, masked_lm
from pgprune.executors import EXECUTORS
from pgprune.masked_lm import MaskedLM
from pgprune.units import PruningUnits
from tiny import VOCABULARY, layers_of, projections_of, tiny_model, tokens, zeroed

GRANULARITIES = [
    ("heads+channels", 1),
    ("heads+channels", 4),
    ("heads", 1),
    ("channels", 1),
    ("blocks", 1),
    ("layers", 1),
]
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def patterns(units: PruningUnits) -> dict[str, torch.Tensor]:
    """Masks that prune some units of each kind, all units of a kind in a layer, whole layers."""
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(units.n, generator=generator) < 0.5
    pruned = {"nothing": units.group < 0, "everything": units.group >= 0, "some": some}
    for k, kind in enumerate(units.kinds):
        of_kind = units.kind == k
        first = torch.tensor([group.start for group in units.groups if group.kind == kind])
        pruned[f"some {kind}"] = some & of_kind
        pruned[f"the first {kind} of each layer"] = torch.isin(torch.arange(units.n), first)
        pruned[f"all {kind} of layer 1"] = of_kind & (units.layer == 1)
    for layer, name in ((0, "layer 0"), (1, "layer 1"), (2, "the last layer")):
        pruned[name] = units.layer == layer
        pruned[f"{name} and some"] = (units.layer == layer) | some
    return {name: (~gone).to(torch.uint8) for name, gone in pruned.items()}


@dataclass
class Case:
    """A model, units and all patterns of masks over them."""

    model: torch.nn.Module
    units: PruningUnits
    ids: torch.Tensor

    def __post_init__(self) -> None:
        self.names = list(patterns(self.units))
        self.masks = torch.stack(list(patterns(self.units).values()))  # (K, n)

    def logits(self, executor: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        lm = MaskedLM(copy.deepcopy(self.model).to(dtype), self.units, executor)
        return lm.logits(self.masks, self.ids).double()

    def reference(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """What Hugging Face computes with zeros in place of the pruned weights."""
        model = copy.deepcopy(self.model).to(dtype)
        with torch.no_grad():
            plain = [zeroed(model, self.units, mask)(self.ids).logits for mask in self.masks]
        return torch.stack(plain).double()

    def worst(self, error: torch.Tensor) -> str:
        """The pattern with the largest error, for the message of a failure."""
        error = error.abs().flatten(1).amax(dim=1)
        return f"{self.names[int(error.argmax())]} pruned: off by {float(error.max()):.3g}"

    def size(self, error: torch.Tensor) -> torch.Tensor:
        """Root mean square of each pattern's error, (K,)."""
        return error.square().mean(dim=(1, 2, 3)).sqrt()


def case_of(model, granularity="heads+channels", channel_block=1, **tokens_options) -> Case:
    units = PruningUnits.of(model, granularity, channel_block)
    return Case(model, units, tokens(**tokens_options))


@pytest.fixture(params=["heads+channels", "blocks"])
def case(model, request) -> Case:
    return case_of(model, request.param)


@pytest.mark.parametrize(("granularity", "channel_block"), GRANULARITIES)
def test_logits_equal_those_of_a_model_without_the_pruned_weights(
    model, granularity, channel_block
):
    case = case_of(model, granularity, channel_block)
    expected, masked, sliced = case.reference(), case.logits("masked"), case.logits("sliced")
    for error in (masked - expected, sliced - expected, masked - sliced):
        assert float(error.abs().max()) <= 1e-10, case.worst(error)


def test_float32_is_as_exact_as_float32_can_be(case):
    plain = case.reference(torch.float32)
    masked, sliced = (case.logits(executor, torch.float32) for executor in EXECUTORS)
    allowed = 1e-5 * plain.abs().amax(dim=(1, 2, 3), keepdim=True) + 1e-6  # (K, 1, 1, 1)
    for error in (masked - plain, sliced - plain, masked - sliced):
        assert bool((error.abs() <= allowed).all()), case.worst(error)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_bfloat16_is_hardly_less_exact_than_the_dense_model(model, executor):
    """On a residual stream that the blocks do not dominate, as in trained models."""
    model.get_input_embeddings().weight.data *= 10
    model.to(torch.bfloat16).to(torch.float64)  # the same weights in every number format
    case = case_of(model)
    size = case.size(case.logits(executor, torch.bfloat16) - case.logits("masked", torch.float32))
    assert case.names[0] == "nothing"
    assert bool((size <= 1.5 * size[0]).all()), case.names[int(size.argmax())]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_bfloat16_is_hardly_less_exact_than_a_model_without_the_pruned_weights(model, executor):
    """On any residual stream."""
    model.to(torch.bfloat16).to(torch.float64)
    case = case_of(model)
    exact = case.logits("masked", torch.float32)
    size = case.size(case.logits(executor, torch.bfloat16) - exact)
    plain = case.size(case.reference(torch.bfloat16) - exact)
    assert bool((size <= 1.5 * plain).all()), case.names[int((size / plain).argmax())]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("family", ["mistral", "qwen2", "opt"])
def test_attention_masks_that_are_spelt_out_for_every_sequence(family, executor):
    case = case_of(tiny_model(family, _attn_implementation="eager"), batch=3)
    error = case.logits(executor) - case.reference()
    assert float(error.abs().max()) <= 1e-10, case.worst(error)


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_dense_mask_gives_each_sequence_its_plain_loss(model, dtype, executor):
    model, ids = model.to(dtype), tokens(batch=3)
    units = PruningUnits.of(model)
    losses = MaskedLM(model, units, executor).losses(units.ones()[None], ids)
    expected = [[float(model(row[None], labels=row[None]).loss) for row in ids]]
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert losses.shape == (1, 3)
    torch.testing.assert_close(losses.double(), torch.tensor(expected).double(), **_near(dtype))


def _near(dtype: torch.dtype) -> dict[str, float]:
    return {"rtol": 0, "atol": {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, 0.05)}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_losses_are_those_of_the_logits(model, executor):
    case = case_of(model)
    lm = MaskedLM(case.model, case.units, executor)
    logits = lm.logits(case.masks, case.ids)[:, :, :-1]  # (K, B, T-1, V)
    wanted = case.ids[:, 1:].expand(len(case.masks), -1, -1)
    expected = -logits.log_softmax(-1).gather(-1, wanted[..., None]).mean(dim=(2, 3))
    torch.testing.assert_close(lm.losses(case.masks, case.ids), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("size", ["_LOGITS_BYTES", "_PASS_TOKENS"])
def test_chunks_change_nothing(monkeypatch, executor, size):
    model, ids = tiny_model("llama"), tokens(batch=4, length=40)
    units = PruningUnits.of(model)
    masks = torch.stack(list(patterns(units).values()))
    lm = MaskedLM(model, units, executor)
    whole = lm.losses(masks, ids)
    monkeypatch.setattr(masked_lm, size, 1)
    torch.testing.assert_close(lm.losses(masks, ids), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.uint8, torch.float32])
def test_masks_of_any_type(dtype):
    model, ids = tiny_model("qwen2"), tokens()
    lm = MaskedLM(model, PruningUnits.of(model))
    masks = torch.stack(list(patterns(lm.units).values()))
    assert torch.equal(lm.losses(masks.to(dtype), ids), lm.losses(masks, ids))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_overflow_inside_a_pruned_unit_is_gone_with_it(executor):
    model, ids = tiny_model("llama"), tokens()
    units = PruningUnits.of(model, "channels")
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    mask = units.ones()[None]
    lm = MaskedLM(model, units, executor)
    assert bool(lm.losses(mask, ids).isnan().all())
    mask[0, units.groups[1].start + 3] = 0
    assert bool(lm.losses(mask, ids).isfinite().all())


@pytest.mark.parametrize("granularity", ["heads+channels", "blocks", "layers"])
def test_a_sliced_evaluation_costs_the_kept_share_of_the_layers_and_the_head(granularity):
    model, ids = tiny_model("llama", num_hidden_layers=4), tokens()
    units = PruningUnits.of(model, granularity)
    lm = MaskedLM(model, units, "sliced")
    half = (torch.arange(units.n) % 2).to(torch.uint8)
    if granularity == "blocks":
        half = (units.layer % 2).to(torch.uint8)

    def operations(mask: torch.Tensor) -> int:
        with FlopCounterMode(display=False) as counter:
            lm.losses(mask[None], ids)
        return counter.get_total_flops()

    head = 2 * (ids.numel() - len(ids)) * VOCABULARY * model.config.hidden_size
    dense = operations(units.ones()) - head
    assert operations(half) - head == dense // 2
    assert operations(torch.zeros(units.n)) == head


def test_tokens_count_everything_that_is_asked_of_the_model():
    model, ids = tiny_model("llama"), tokens(batch=2, length=9)
    lm = MaskedLM(model, PruningUnits.of(model))
    assert lm.tokens == 0
    lm.losses(torch.ones(5, lm.units.n), ids)
    assert lm.tokens == 5 * 18
    for _ in lm.observe(lm.units.ones(), ids):
        pass
    assert lm.tokens == 5 * 18 + 2 * 18  # each layer runs dense and masked


def test_what_is_no_mask_of_the_units_is_refused():
    lm = MaskedLM(tiny_model("llama"), toy := PruningUnits.of(tiny_model("llama")))
    for masks in (toy.ones(), torch.ones(2, toy.n + 1)):
        with pytest.raises(PruningError, match=rf"masks must have shape \(K, {toy.n}\)"):
            lm.losses(masks, tokens())


def test_an_unknown_executor_is_refused():
    model = tiny_model("llama")
    with pytest.raises(PruningError, match="executor 'fast' .* masked, sliced"):
        MaskedLM(model, PruningUnits.of(model), "fast")


# ---------------------------------------------------------------- the model stays as it is


def snapshot(model: torch.nn.Module) -> list:
    """Everything about a model that an evaluation could change."""
    modules = dict(model.named_modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules.values()]
    own = [sorted(m.__dict__) for m in modules.values()]
    heads = [getattr(layer.self_attn, "num_heads", None) for layer in layers_of(model)]
    identities = [id(p) for p in model.parameters()]
    return [list(modules), hooks, own, heads, identities]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_model_is_untouched(case, executor):
    lm = MaskedLM(case.model, case.units, executor)
    before, weights = snapshot(case.model), copy.deepcopy(case.model.state_dict())
    plain = case.model(case.ids).logits
    lm.losses(case.masks, case.ids)
    for observation in lm.observe(case.masks[1], case.ids):
        list(observation.inputs)
    assert snapshot(case.model) == before
    assert all(torch.equal(weights[name], p) for name, p in case.model.state_dict().items())
    assert torch.equal(case.model(case.ids).logits, plain)
    assert not any(p.requires_grad for p in case.model.parameters())


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_model_is_untouched_by_an_error_inside(case, executor, monkeypatch):
    lm = MaskedLM(case.model, case.units, executor)
    before = snapshot(case.model)
    (_, broken) = projections_of(case.model, 1)

    class Interrupted(Exception):
        pass

    def interrupt(inputs):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", interrupt)
        with pytest.raises(Interrupted):
            lm.losses(case.masks[:1], case.ids)
        with pytest.raises(Interrupted):
            lm.losses(case.masks, case.ids)
        with pytest.raises(Interrupted):
            for observation in lm.observe(case.masks[1], case.ids):
                list(observation.inputs)
    with pytest.raises(IndexError):
        lm.losses(case.masks, case.ids + VOCABULARY)
    assert snapshot(case.model) == before
    assert bool(lm.losses(case.masks, case.ids).isfinite().all())


# ---------------------------------------------------------------- observe


def inputs_by_hooks(model, ids) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The inputs of the output and down projections of each layer, in a plain forward pass."""
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    projections = [projections_of(model, layer) for layer in range(len(layers_of(model)))]
    hooks = [
        module.register_forward_pre_hook(lambda module, args: seen.update({module: args[0]}))
        for pair in projections
        for module in pair
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return [tuple(seen[module].view(*ids.shape, -1) for module in pair) for pair in projections]


def observed(lm: MaskedLM, mask, ids) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        tuple(torch.cat(part) for part in zip(*observation.inputs, strict=True))
        for observation in lm.observe(mask, ids)
    ]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_observe_sees_what_the_projections_of_the_dense_model_get(model, executor):
    lm, ids = MaskedLM(model, PruningUnits.of(model), executor), tokens(batch=3)
    torch.testing.assert_close(
        observed(lm, lm.units.ones(), ids), inputs_by_hooks(model, ids), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("executor", EXECUTORS)
def test_observe_sees_dense_layers_on_the_outputs_of_masked_ones(case, executor):
    lm, mask = MaskedLM(case.model, case.units, executor), patterns(case.units)["some"]
    for layer, seen in enumerate(observed(lm, mask, case.ids)):
        before = torch.where(case.units.layer < layer, mask, 1)
        expected = inputs_by_hooks(zeroed(case.model, case.units, before), case.ids)[layer]
        torch.testing.assert_close(seen, expected, rtol=0, atol=1e-10)


def test_observe_reads_a_mask_that_is_written_as_it_goes():
    model, ids = tiny_model("llama"), tokens()
    lm = MaskedLM(model, PruningUnits.of(model))
    written, given = lm.units.ones(), patterns(lm.units)["some"]
    seen = []
    for observation in lm.observe(written, ids):
        seen.append(next(observation.inputs))
        here = lm.units.layer == observation.layer
        written[here] = given[here]
    torch.testing.assert_close(seen, observed(lm, given, ids))


def test_observations_may_be_read_late_and_come_in_chunks(monkeypatch):
    model, ids = tiny_model("opt"), tokens(batch=5)
    lm = MaskedLM(model, PruningUnits.of(model))
    mask = patterns(lm.units)["some"]
    whole = observed(lm, mask, ids)
    monkeypatch.setattr(masked_lm, "_PASS_TOKENS", 2 * ids.shape[1])
    late = [list(observation.inputs) for observation in list(lm.observe(mask, ids))]
    assert [[len(attention) for attention, _ in chunks] for chunks in late] == [[2, 2, 1]] * 3
    joined = [tuple(torch.cat(part) for part in zip(*chunks, strict=True)) for chunks in late]
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-12)
