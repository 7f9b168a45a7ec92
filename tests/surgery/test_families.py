"""Families whose layers differ from LLaMA's: masks, surgery and repair are as exact for them.

Norms after blocks, multipliers, soft-capping, layers of several kinds. All sliding windows are
shorter than the texts.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from helpers.inputs import inputs_of
from helpers.masks import Case, bound, case_of, patterns
from helpers.pruned import in_pieces, parameters
from helpers.tiny import CONFIGS, FEW, masked_lm, tiny_model, tokens, zeroed
from pgprune import PruningError
from pgprune.losses.tokens import next_token_logits, sequence_losses
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import GRANULARITIES as UNITS
from pgprune.models.families import family_of
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import repaired
from pgprune.surgery.architecture import assemble
from pgprune.surgery.layers import prune
from pgprune.surgery.portable import portable_layers
from pgprune.surgery.slice_model import check_sliceable

FAMILIES = [family for family in CONFIGS if family not in FEW]
GRANULARITIES = ["heads+channels", "values+channels", "blocks", "layers"]
WINDOWS = tokens(batch=6, length=20)


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest):
    return tiny_model(request.param)


def fine(model) -> str:
    """The finest units of a family."""
    return "channels" if "heads" in family_of(model.config).refused else "heads+channels"


def fits(model, granularity: str) -> bool:
    """Whether the family has units of a granularity."""
    return not set(UNITS[granularity]) & set(family_of(model.config).refused)


def whole(model) -> str:
    """The coarsest units of a family."""
    return "layers" if fits(model, "layers") else fine(model)


def case_in(model, granularity: str) -> Case:
    """A few patterns of a granularity; of channels where the family refuses heads."""
    wanted = (granularity, whole(model) if "+" not in granularity else fine(model))
    case = case_of(model, next(units for units in wanted if fits(model, units)))
    some = ("nothing", "some", "layer 1", "layer 0 and some", "the first kv head and some")
    kept = [i for i, name in enumerate(case.names) if name in some or name.startswith("all ")]
    case.names, case.masks = [case.names[i] for i in kept], case.masks[kept]
    return case


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masked_sliced_and_cut_models_have_the_same_logits(model, granularity):
    case = case_in(model, granularity)
    expected = case.reference()
    for executor in ("masked", "sliced"):
        close(case.logits(executor), expected, bound(model))
    for name, mask, logits in zip(case.names, case.masks, expected, strict=True):
        pruned = prune(model, case.units, mask)
        close(in_pieces(pruned, case.ids), logits, bound(model, cached=True))
        assert parameters(pruned) == parameters(model) - case.units.pruned_parameters(mask), name


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_saved_model_has_them_too(model, granularity, tmp_path):
    units, ids = case_in(model, granularity).units, tokens()
    mask = patterns(units)["layer 1" if units.granularity == "layers" else "layer 1 and some"]
    expected = MaskedLM(model, units).logits(mask[None], ids)[0]
    prune(model, units, mask).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    close(loaded(ids).logits, expected, bound(model))
    generated = [
        loaded.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=use)
        for use in (True, False)
    ]
    assert torch.equal(*generated)


def errors_of(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of cut models and of stock ones with zeros, from the masked float32 model, in a format."""
    less = Case(copy.deepcopy(case.model).to(dtype), case.units, case.ids)
    less.names, less.masks = case.names, case.masks
    exact = case.logits("masked", torch.float32)
    cut = [prune(less.model, case.units, mask)(case.ids).logits for mask in case.masks]
    return torch.stack(cut).detach().double() - exact, less.reference(dtype) - exact


def test_float32_is_as_exact_as_float32_can_be(model):
    case = case_in(model, "heads+channels")
    error, size = errors_of(case, torch.float32)[0], case.logits("masked")
    error, size = (part.abs().amax((1, 2, 3)) for part in (error, size))
    assert bool((error <= 1e-5 * size + 1e-6).all())


def test_bfloat16_is_hardly_less_exact_than_a_stock_model_with_zeros(model):
    model.get_input_embeddings().weight.data *= 10  # a residual stream as in trained models
    model.to(torch.bfloat16).to(torch.float64)
    case = case_in(model, "heads+channels")
    cut, stock = map(case.size, errors_of(case, torch.bfloat16))
    assert bool((cut <= 1.5 * stock).all()), case.names


def test_losses_are_those_of_the_stock_models_own_logits(model):
    """Soft-capping and multipliers of logits are part of the loss, chunk by chunk and compiled."""
    ids, lm = tokens(batch=3), masked_lm(model, whole(model))
    with torch.no_grad():
        logits = model(ids).logits
    losses = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none").mean(1)
    close(lm.losses(lm.units.ones()[None], ids)[0], losses)
    close(sequence_losses(model, ids), losses)
    close(next_token_logits(model, ids)[0], logits[:, -1])
    close(lm.logits(lm.units.ones()[None], ids)[0], logits)
    gone = lm.units.ones()
    gone[1] = 0
    divergence = lm.divergences(gone[None], ids, lm.dense_predictions(ids, top=48))[0]
    few = zeroed(model, lm.units, gone)(ids).logits.detach()
    expected = F.kl_div(*(each[:, :-1].log_softmax(2) for each in (few, logits)), log_target=True,
                        reduction="none")  # fmt: skip
    close(divergence, expected.sum(2).mean(1))


@pytest.mark.parametrize("granularity", ["heads+channels", "blocks"])
def test_observed_layers_and_states_are_those_of_the_model(model, granularity):
    units, ids = case_in(model, granularity).units, tokens(batch=3)
    lm, mask = MaskedLM(model, units), patterns(units)["some"]
    for seen in lm.observe(mask, ids):
        before = torch.where(units.layer < seen.layer, mask, 1)
        plain = inputs_of(zeroed(model, units, before), ids)
        for attention, mlp in seen.inputs:
            close(attention, plain[seen.layer, "heads"])
            close(mlp, plain[seen.layer, "channels"])
    if family_of(model.config).rest:
        return  # the states after a layer are not those after its MLP
    blocks = lm.blocks(ids)
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    for after in states[1:-1]:  # the last one is behind the final norm
        (between,), (found,) = next(blocks), next(blocks)
        close(found, after)
        assert not torch.equal(between, found)


@pytest.mark.parametrize("how", ["bias", "least-squares"])
def test_a_repair_helps_and_goes_where_its_mask_goes(model, how):
    lm, ids = masked_lm(model, fine(model)), tokens()
    mask = patterns(lm.units)["some"]
    found = fit_repair(lm, mask, WINDOWS, how)
    with repaired(lm, found):
        expected = lm.logits(mask[None], ids)[0]
        repaired_states = [seen.states[0] for seen in lm.observe(mask.clone(), WINDOWS)]
    pieces = in_pieces(prune(model, lm.units, mask, found), ids)
    close(pieces, expected, bound(model, cached=True))
    close(assemble(model, lm.units, portable_layers(model, lm.units, mask, 4, found))(ids).logits,
          expected)  # fmt: skip
    if how == "least-squares":
        dense, cut = (
            [seen.states[0] for seen in lm.observe(each, WINDOWS)]
            for each in (lm.units.ones(), mask)
        )
        errors = [float((states[1] - dense[1]).norm()) for states in (repaired_states, cut)]
        assert errors[0] < errors[1]


def test_slicegpt_is_exact_or_refused(model):
    if family_of(model.config).sliced:
        check_sliceable(model)
    else:
        with pytest.raises(PruningError, match="SliceGPT cannot slice .* choose a method that"):
            check_sliceable(model)
