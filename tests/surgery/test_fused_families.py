"""Exports of models whose layers are cut out of dense ones, and parallel residuals."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from helpers.finished_run import assert_close, finished_run, logits
from helpers.masks import case_of, patterns
from helpers.pruned import equal_layers, in_pieces
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of
from pgprune.models.load import ModelConfig, load_model
from pgprune.models.rows import FAMILIES
from pgprune.surgery.architecture import assemble
from pgprune.surgery.layers import prune
from pgprune.surgery.portable import portable_layers

FUSED = [name for name, row in FAMILIES.items() if row.layout]
STOCK_HEADS = {name: FAMILIES[name].stock_heads != "dense" for name in FUSED}


@pytest.fixture(params=FUSED)
def model(request: pytest.FixtureRequest):
    return tiny_model(request.param)


@pytest.mark.parametrize("kept", [{"channels": 8}, {"heads": 1, "channels": 8}])
def test_equal_layers_are_a_stock_checkpoint_where_it_takes_any_number_of_heads(
    model, kept, tmp_path
):
    units = PruningUnits.of(model)
    mask = equal_layers(units, **kept)
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    folder = export(finished_run(tmp_path, model, units, mask), ExportConfig())
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    assert_close(loaded(tokens()).logits, expected)
    assert_close(in_pieces(loaded, tokens()), expected)
    stock = "heads" not in kept or STOCK_HEADS[model.config.model_type]
    assert (type(loaded) is type(model)) == stock
    assert (loaded.state_dict().keys() == model.state_dict().keys()) == stock


@pytest.mark.parametrize("options", [{"format": "masked"}, {"portable": True}, {}])
def test_exports_of_layers_that_differ(model, options, tmp_path):
    units = PruningUnits.of(model)
    mask = patterns(units)["layer 1 and some"]
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    run = finished_run(tmp_path, model, units, mask)
    folder = export(run, ExportConfig(**options))
    assert_close(logits(folder), expected)
    again, _ = load_model(ModelConfig(str(folder), dtype="float64", device="cpu"), pruned=True)
    again.save_pretrained(tmp_path / "again")
    assert_close(logits(tmp_path / "again"), expected)


def test_attention_weights_of_layers_without_heads(model):
    units = PruningUnits.of(model)
    pruned = prune(model, units, patterns(units)["all heads of layer 1"])
    pruned.set_attn_implementation("eager")
    with torch.no_grad():
        seen = pruned(tokens(), output_attentions=True, output_hidden_states=True)
    assert [weights.shape[1] for weights in seen.attentions] == [4, 0, 4]
    assert len(seen.hidden_states) == 4


def test_a_classifier_on_layers_that_differ(model, tmp_path):
    units = PruningUnits.of(model)
    pruned = prune(model, units, patterns(units)["layer 1 and some"])
    pruned.save_pretrained(tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    classifier = load(tmp_path, num_labels=3, pad_token_id=1, dtype=torch.float64)
    last = pruned.base_model(tokens()).last_hidden_state[:, -1]  # (2, D)
    assert_close(classifier(tokens()).logits, last @ classifier.score.weight.T)


def test_layers_of_random_weights(model):
    """As for a model that is trained from scratch."""
    units = PruningUnits.of(model, "values+channels")
    config = prune(model, units, patterns(units)["layer 1 and some"]).config
    made = AutoModelForCausalLM.from_config(config)
    assert made(tokens()).logits.isfinite().all()


def test_long_rotary_factors_of_phi3_belong_to_the_dense_number_of_heads():
    """A stock configuration checks their number against the width over the heads."""
    factors = {"short_factor": [1.0, 1.1], "long_factor": [2.0, 2.2]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5, **factors}
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    case = case_of(model)
    mask = equal_layers(case.units, heads=1, channels=8)
    pruned = prune(model, case.units, mask)
    assert pruned.config.model_type == "pgprune_phi3"
    expected = MaskedLM(model, case.units).logits(mask[None], case.ids)[0]
    assert_close(in_pieces(pruned, case.ids), expected)


class TestParallelResidual:
    def test_the_configuration_says_whether_it_is_parallel(self):
        for parallel in (True, False):
            model = tiny_model("gpt_neox", use_parallel_residual=parallel)
            assert family_of(model.config).parallel == parallel
        assert not family_of(tiny_model("llama").config).parallel

    @pytest.mark.parametrize("granularity", ["heads+channels", "blocks"])
    def test_residuals_in_turn_are_as_exact(self, granularity):
        case = case_of(tiny_model("gpt_neox", use_parallel_residual=False), granularity)
        expected = case.reference()
        assert_close(case.logits("masked"), expected)
        assert_close(case.logits("sliced"), expected)
        mask = patterns(case.units)["some"]
        pruned = prune(case.model, case.units, mask)
        assert_close(pruned(case.ids).logits, expected[case.names.index("some")])

    @pytest.mark.parametrize(("parallel", "layers"), [(True, 3), (False, 2)])
    def test_attention_and_the_mlp_of_the_next_layer_are_one_layer_only_in_turn(
        self, parallel, layers
    ):
        model = tiny_model("gpt_neox", use_parallel_residual=parallel)
        units = PruningUnits.of(model, "blocks")
        mask = torch.tensor([1, 0, 0, 1, 1, 1], dtype=torch.uint8)  # a, m, am
        portable = assemble(model, units, portable_layers(model, units, mask, 2))
        assert portable.config.num_hidden_layers == layers
        expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
        assert_close(portable(tokens()).logits, expected)

    def test_blocks_that_share_a_norm_are_refused(self):
        with pytest.raises(PruningError, match="'attention' .* 'phi', because both .* one norm"):
            PruningUnits.of(tiny_model("phi"), "blocks")

    def test_states_after_a_block_are_sums_of_what_it_adds(self):
        lm = MaskedLM(model := tiny_model("gpt_neox"), PruningUnits.of(model))
        states = list(lm.states(tokens()))
        blocks = lm.blocks(tokens())
        for index, before, after in states:
            (between,), (found,) = next(blocks), next(blocks)
            layer = model.gpt_neox.layers[index]
            added = layer.mlp(layer.post_attention_layernorm(before))
            assert_close(found, after)
            assert_close(between, after - added)
