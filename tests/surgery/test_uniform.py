"""The same numbers in all layers: stock models, and runs whose mask is rounded again for them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralForCausalLM

from helpers.command import as_options, train
from helpers.finished_run import assert_close, finished_run, logits, numbers, run_of_pattern
from helpers.masks import patterns
from helpers.pruned import equal_layers, in_pieces, parameters
from helpers.tiny import tiny_arguments, tiny_model, tokens
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.export.export import ExportConfig, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, load_model
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.surgery.layers import prune


@pytest.mark.parametrize("kept", [{"heads": 1}, {"channels": 5}, {"heads": 1, "channels": 5}])
def test_equal_layers_make_a_stock_model(model, kept, tmp_path):
    if model.config.model_type == "opt" and "heads" in kept:
        pytest.skip("the size of OPT's heads is tied to their number")
    units, ids = PruningUnits.of(model), tokens()
    mask = equal_layers(units, **kept)
    pruned = prune(model, units, mask)
    assert type(pruned) is type(model)
    assert type(pruned.config) is type(model.config)
    expected = MaskedLM(model, units).logits(mask[None], ids)[0]
    pruned.save_pretrained(tmp_path)
    assert_close(logits(tmp_path, trust_remote_code=False), expected)
    assert_close(in_pieces(pruned, ids), expected)
    assert numbers(tmp_path) == parameters(model) - units.pruned_parameters(mask)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"auto_map", "per_layer_config"} & config.keys()
    assert config.get("head_dim", units.shapes[0].head_dim) == units.shapes[0].head_dim


def test_equal_layers_without_channels_are_no_stock_model(model):
    units = PruningUnits.of(model)
    pruned = prune(model, units, equal_layers(units, channels=0))
    assert pruned.config.model_type == f"pgprune_{model.config.model_type}"


def narrow_llama(biases: bool):
    """Four kv groups of two heads: three groups are six heads, which do not divide the width."""
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}
    return tiny_model("llama", **sizes, attention_bias=biases, mlp_bias=biases)


def test_a_llama_whose_heads_do_not_divide_its_width_is_saved_as_a_mistral(tmp_path):
    """LlamaConfig refuses such numbers; Mistral without a window is the same network."""
    model = narrow_llama(biases=False)
    units, ids = PruningUnits.of(model), tokens()
    mask = equal_layers(units, heads=3)
    pruned = prune(model, units, mask)
    assert type(pruned) is MistralForCausalLM
    assert pruned.config.sliding_window is None
    expected = MaskedLM(model, units).logits(mask[None], ids)[0]
    assert_close(in_pieces(pruned, ids), expected)
    run = finished_run(tmp_path, model, units, mask)
    folder = export(run, ExportConfig(uniform=True))
    assert_close(logits(folder, trust_remote_code=False), expected)
    assert "Saved as the architecture `mistral`" in (folder / "README.md").read_text()


def test_a_llama_with_biases_whose_heads_do_not_divide_its_width_needs_our_code(tmp_path):
    model = narrow_llama(biases=True)
    units = PruningUnits.of(model)
    mask = equal_layers(units, heads=3)
    assert prune(model, units, mask).config.model_type == "pgprune_llama"
    run = finished_run(tmp_path, model, units, mask)
    refuses(run, "no stock architecture holds 6 heads at the width 32")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of the training command, whose layers keep different numbers of channels."""
    folder = tmp_path_factory.mktemp("searched")
    arguments = tiny_arguments(folder) | {"evaluation_windows": 8, "init_samples": 8}
    arguments |= {"total_timesteps": 1, "seed": 2, "output": str(folder / "run")}
    assert train(*as_options(arguments), "--quiet") == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("uniform", "round_to", "channels"),
    [(True, None, [3, 3, 3]), (True, 2, [2, 2, 2]), (False, 2, [2, 2, 4])],
)
def test_probabilities_are_rounded_again(searched, uniform, round_to, channels, tmp_path, heard):
    run = FinishedRun.open(searched)
    config = ExportConfig(uniform=uniform, round_to=round_to, output=str(tmp_path / "hf"))
    folder = export(run, config)
    weights = load_file(folder / "model.safetensors")
    down = (weights.get(f"model.layers.{i}.mlp.down_proj.weight") for i in range(3))
    assert sorted(0 if weight is None else weight.shape[1] for weight in down) == channels
    if uniform:
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["num_key_value_heads"]) == ("llama", 1)
    of_the_mask, of_the_model = heard.notes
    assert "This is not the run's own mask: the probabilities" in of_the_mask
    card = (folder / "README.md").read_text()
    assert f"{of_the_mask}\n\n{of_the_model}" in card
    results = json.loads((searched / "results.json").read_text())
    value, own = measured(run, folder), results["perplexity"]["masked"]["text"]
    assert of_the_model == (f"Perplexity: {value:.2f} on text (as the run has left it: {own:.2f}).")
    assert f"| this model | {value:.2f} ± " in card
    assert f"| pruned by the run's own mask | {own:.2f} ± " in card
    assert f"{numbers(folder):,} of {results['parameters']['dense']:,} parameters" in card


def measured(run: Run, folder: Path) -> float:
    """Perplexity of the exported model on the run's evaluation text."""
    model, tokenizer = load_model(ModelConfig(str(folder), dtype="float64"), pruned=True)
    (windows,) = evaluation_windows(run.config("data", DataConfig), tokenizer).values()
    with torch.no_grad():
        loss = sum(float(model(ids[None], labels=ids[None]).loss) for ids in windows)
    return math.exp(loss / len(windows))


def test_the_best_units_by_probability_stay(searched, tmp_path):
    """All zeros of the exported model are the least probable units of their layers."""
    run = FinishedRun.open(searched)
    tensors = load_file(searched / "mask.safetensors")
    config = ExportConfig("masked", uniform=True, output=str(tmp_path / "masked"))
    weights = load_file(export(run, config) / "model.safetensors")
    units = PruningUnits.of(tiny_model("llama", intermediate_size=6))
    for group in (group for group in units.groups if group.kind == "channels"):
        down = weights[f"model.layers.{group.layer}.mlp.down_proj.weight"]
        kept = down.any(dim=0)
        scores = tensors["probabilities"][group.start : group.stop]
        assert int(kept.sum()) == 3
        assert float(scores[kept].min()) >= float(scores[~kept].max())


def test_a_mask_that_is_so_already_is_exported_as_it_is(model, tmp_path, heard):
    units = PruningUnits.of(model)
    heads = {} if model.config.model_type == "opt" else {"heads": 1}
    mask = equal_layers(units, channels=6, **heads)
    run = finished_run(tmp_path, model, units, mask)
    folder = export(run, ExportConfig(uniform=True, round_to=3))
    expected = MaskedLM(model, units).logits(mask[None], tokens())[0]
    assert_close(logits(folder, trust_remote_code=False), expected)
    assert heard.notes == []
    assert "own mask" not in (folder / "README.md").read_text()


def test_searching_uniformly(arguments, tmp_path, heard):
    """The command with --scope uniform, whose export needs no second rounding."""
    settings = arguments | {"evaluation_windows": 8, "init_samples": 8, "total_timesteps": 1}
    settings |= {"scope": "uniform", "round_to": 2, "output": str(tmp_path / "run")}
    assert train(*as_options(settings), "--quiet") == 0
    run = FinishedRun.open(tmp_path / "run")
    folder = export(run, ExportConfig(uniform=True))
    assert heard.notes == []
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["intermediate_size"]) == ("llama", 2)
    results = json.loads((run.path / "results.json").read_text())
    assert results["perplexity"]["pruned"]["text"] == pytest.approx(measured(run, folder))


def test_scores_of_a_method_order_the_units_of_a_layer(tmp_path, heard):
    """They need not compare between layers, as Wanda-sp's do not."""
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    run = finished_run(tmp_path, model, units, patterns(units)["layer 1"])
    (tmp_path / "text.txt").write_text("thequickbrownfoxjumps" * 99)
    run.sections["data"] |= {"evaluation": str(tmp_path / "text.txt"), "sequence_length": 16}
    scores = units.layer * 100.0 + torch.arange(units.n) % 7
    tensors = {"mask": patterns(units)["layer 1"], "scores": scores}
    run.write_mask(tensors, units.describe())
    (run.path / "manifest.json").unlink()  # which was of another mask
    config = ExportConfig("masked", uniform=True)
    weights = load_file(export(run, config) / "model.safetensors")
    assert "This is not the run's own mask: the scores" in heard.notes[0]
    for group in (group for group in units.groups if group.kind == "channels"):
        kept = weights[f"model.layers.{group.layer}.mlp.down_proj.weight"].any(dim=0)
        best = scores[group.start : group.stop].sort(descending=True, stable=True).indices[:7]
        assert kept.nonzero().flatten().tolist() == sorted(best.tolist())
    refuses(run, "kept no probabilities .*; add --uniform, or search", uniform=False, round_to=5)


def refuses(run: Run, message: str, **options) -> None:
    before = sorted(run.path.rglob("*"))
    with pytest.raises(PruningError, match=message):
        export(run, ExportConfig(**({"uniform": True} | options)))
    assert sorted(run.path.rglob("*")) == before


def test_no_stock_model_has_fewer_value_dimensions(tmp_path):
    run = run_of_pattern(tmp_path, "some", granularity="values+channels")
    refuses(run, "no stock architecture has fewer value .*; export without --uniform.*--portable")
    with pytest.raises(PruningError, match="no stock architecture has fewer value dimensions"):
        Budget(PruningUnits.of(tiny_model("llama"), "values"), 0.5, scope="uniform")


def test_equal_layers_of_fewer_heads_are_no_stock_opt(tmp_path):
    model = tiny_model("opt")
    units = PruningUnits.of(model)
    mask = equal_layers(units, heads=2)
    assert prune(model, units, mask).config.model_type == "pgprune_opt"
    run = finished_run(tmp_path, model, units, mask)
    refuses(run, "family opt ties the number of heads .* prune with --granularity channels")


def test_single_blocks(tmp_path):
    model = tiny_model("llama")
    units = PruningUnits.of(model, "blocks")
    mask = units.ones()
    mask[1] = 0
    message = (
        "granularity blocks prunes whole ones; export without --uniform, perhaps with --portable"
    )
    refuses(finished_run(tmp_path, model, units, mask), message)


def test_whole_layers_are_uniform_anyway(tmp_path):
    folder = export(
        run_of_pattern(tmp_path, "layer 1", granularity="layers"), ExportConfig(uniform=True)
    )
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"


def test_a_run_without_probabilities_and_numbers_of_channels_that_cannot_be(tmp_path):
    run = run_of_pattern(tmp_path, "layer 1")
    refuses(run, "kept no probabilities .* search once more with --scope uniform")
    refuses(run, "round_to 16 is more than the 12 channels of layer 0", round_to=16)
    refuses(run, "prune rate 0.4 leaves nothing of channels in any layer of 12", round_to=8)
