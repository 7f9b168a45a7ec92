"""SliceGPT: rotations change nothing, slices do the same in every form, and counts are exact."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.finished_run import assert_close
from helpers.pruned import logits_of, parameters, sliced
from helpers.tiny import exact_norms, tiny_model, tokens
from pgprune import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.methods.common.base import MethodConfig
from pgprune.methods.slicegpt import principal, slicegpt, width_for, width_of
from pgprune.models.families import decoder_layers, family_of
from pgprune.surgery.slice_model import slice_model, sliced_config, sliced_parameters
from pgprune.surgery.stream_slices import Slices, stream_sliced

WIDTH = 16  # of 32


def test_rotations_alone_change_nothing(model):
    model = exact_norms(model)
    torch.manual_seed(0)
    rotations = torch.linalg.qr(torch.randn(6, 32, 32, dtype=torch.float64)).Q
    rotated = slice_model(model, Slices(rotations))
    assert_close(logits_of(rotated), logits_of(model))


def test_a_stream_that_lives_in_few_dimensions_is_sliced_without_loss(model):
    model = exact_norms(model)
    few = torch.linalg.qr(torch.randn(32, WIDTH, dtype=torch.float64)).Q
    family = family_of(model.config)
    with torch.no_grad():
        for layer in decoder_layers(model, family):
            for path in (family.output, family.down):
                for parameter in layer.get_submodule(path).parameters():
                    parameter.copy_(few @ few.T @ parameter)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.copy_(module.weight @ few @ few.T)
    dense = logits_of(model)
    slices = sliced(model)
    assert_close(logits_of(slice_model(model, slices)), dense)
    assert float((logits_of(slice_model(model, sliced(model, 8))) - dense).abs().max()) > 0.1


def test_applied_sliced_and_loaded_again_are_one_model(model, tmp_path):
    model = exact_norms(model)
    slices = sliced(model)
    dense = logits_of(model)
    with stream_sliced(model, slices):
        expected = logits_of(model)
    assert_close(logits_of(model), dense, atol=1e-12)
    small = slice_model(model, slices)
    assert_close(logits_of(small), expected)
    small.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert_close(logits_of(loaded), logits_of(small), atol=1e-12)
    assert parameters(small) == parameters(loaded) == sliced_parameters(model, WIDTH)


def test_tied_embeddings_come_apart():
    model = exact_norms(tiny_model("llama", tie_word_embeddings=True))
    slices = sliced(model, 32)
    small = slice_model(model, slices)
    assert_close(logits_of(small), logits_of(model))
    assert small.lm_head.weight is not small.model.embed_tokens.weight
    assert parameters(small) == sliced_parameters(model, 32)


def test_float32_is_as_exact_as_float32_can_be(model):
    model.to(torch.float32)
    slices = sliced(model)
    with stream_sliced(model, slices):
        expected = logits_of(model)
    assert slices.rotations.dtype == torch.float32
    assert_close(logits_of(slice_model(model, slices)), expected, atol=1e-4)


def test_the_points_are_sliced_one_by_one():
    """The first layer's second point, computed by hand on what the first point leaves."""
    model = exact_norms(tiny_model("llama"))
    ids = tokens(batch=20, length=16, seed=1)
    first, second = sliced(model).rotations[:2]
    stream = model.model.embed_tokens(ids)
    norm, attention = model.model.layers[0].input_layernorm, model.model.layers[0].self_attn

    def leading(stream: torch.Tensor) -> torch.Tensor:
        _, _, rows = torch.linalg.svd(stream.flatten(0, 1), full_matrices=False)
        return rows[:WIDTH].T @ rows[:WIDTH]

    assert_close(first @ first.T, leading(stream))
    stream = stream @ leading(stream)
    rotary = model.model.rotary_emb(stream, torch.arange(16)[None])
    stream = stream + attention(norm(stream), rotary)[0]
    assert_close(second @ second.T, leading(stream))


def test_the_mean_is_the_last_direction_where_norms_subtract_it():
    stream = torch.randn(1, 20, 32, dtype=torch.float64) + 5
    directions = principal([stream], torch.nn.LayerNorm(32), 32)
    mean = torch.full((32,), 32**-0.5, dtype=torch.float64)
    assert float((directions[:, -1] @ mean).abs()) == pytest.approx(1)
    assert_close(mean @ directions[:, :-1], torch.zeros(31, dtype=torch.float64))


@pytest.fixture(scope="module")
def llama_2_7b():
    config = LlamaConfig(
        num_hidden_layers=32, hidden_size=4096, intermediate_size=11008, vocab_size=32000
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("fraction", "billions"), [(0.3, 5.293), (0.4, 4.501), (0.5, 3.730)])
def test_llama_2_7b_has_the_published_sizes(llama_2_7b, fraction, billions):
    """Table A2 of arXiv 2406.10576."""
    count = sliced_parameters(llama_2_7b, width_of(llama_2_7b, fraction))
    assert count / 1e9 == pytest.approx(billions, abs=5e-4)


def test_the_formula_counts_the_model_that_is_built(llama_2_7b):
    with torch.device("meta"):
        small = AutoModelForCausalLM.from_config(sliced_config(llama_2_7b, 2864))
    assert parameters(small) == sliced_parameters(llama_2_7b, 2864)


def test_a_prune_rate_takes_the_nearest_width_from_below(llama_2_7b):
    """30 % of the blocks of LLaMA-2-7B leave 4.796 B, which needs a slice of about 36.3 %."""
    prunable = PruningUnits.of(llama_2_7b).prunable
    target = parameters(llama_2_7b) - round(0.3 * prunable)
    width = width_for(llama_2_7b, target)
    assert 1 - width / 4096 == pytest.approx(0.363, abs=1e-3)
    assert sliced_parameters(llama_2_7b, width) <= target < sliced_parameters(llama_2_7b, width + 8)


def test_widths_are_multiples_of_8_and_a_fraction_of_0_cuts_nothing(llama_2_7b):
    assert [width_of(llama_2_7b, fraction) for fraction in (0, 0.2, 0.25)] == [4096, 3272, 3072]
    odd = tiny_model("llama", hidden_size=36, num_attention_heads=4)
    assert [width_of(odd, fraction) for fraction in (0, 0.01)] == [36, 32]


def test_the_method_keeps_its_promises(problem):
    pruned = slicegpt(problem, problem.stream.head(16), 0, MethodConfig())
    model = problem.lm.model
    small = slice_model(model, pruned.slices)
    assert pruned.mask.all()
    assert pruned.notes["width"] == pruned.slices.width
    assert pruned.notes["parameters"] == parameters(small)
    removed = parameters(model) - parameters(small)
    assert pruned.notes["prune_rate"] == pytest.approx(removed / problem.units.prunable)
    assert pruned.notes["prune_rate"] >= 0.5
    target = parameters(model) - round(0.5 * problem.units.prunable)
    assert sliced_parameters(model, pruned.slices.width + 1) > target  # no wider one would do


def test_a_slice_fraction_sets_the_width(problem):
    config = MethodConfig(slice_fraction=0.3)
    assert slicegpt(problem, problem.stream.head(4), 0, config).slices.width == 16


def test_what_cannot_be_sliced_is_refused(problem, tmp_path):
    model = problem.lm.model
    with pytest.raises(PruningError, match="width of 1"):
        width_for(model, 100)
    with pytest.raises(PruningError, match="0.9.*32"):
        width_of(model, 0.9)
    with pytest.raises(PruningError, match="2 layers.* 3 "):
        slice_model(model, Slices(torch.zeros(4, 32, 8)))
    with pytest.raises(PruningError, match="not finite.*dtype"):
        principal([torch.full((1, 2, 8), torch.nan)], torch.nn.RMSNorm(8), 8)
    headless = tiny_model("opt", _remove_final_layer_norm=True)
    with pytest.raises(PruningError, match="norm before its head"):
        sliced_parameters(headless, 8)
