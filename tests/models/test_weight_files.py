"""Every tensor of a model's files becomes a weight, and every configured layer has its tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.masks import patterns
from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, check_model, load_model
from pgprune.runs.any_model import load_any
from pgprune.surgery.layers import prune

INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path) -> Path:
    """A tiny LLaMA of three layers, in one file."""
    tiny_model("llama", torch.float32).save_pretrained(tmp_path)
    letters_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def sharded(directory) -> Path:
    """The same model in several files."""
    (directory / "model.safetensors").unlink()
    tiny_model("llama", torch.float32).save_pretrained(directory, max_shard_size="8KB")
    return directory


def edit(path: Path, **changes) -> dict:
    """Changes values of a JSON file; returns what it held before."""
    before = json.loads(path.read_text())
    path.write_text(json.dumps(before | changes))
    return before


def refuses(message: str, directory: Path, load=check_model) -> None:
    with pytest.raises(PruningError, match=message) as error:
        load(ModelConfig(str(directory)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", [2, 0, -1, 4, 9999])
def test_another_number_of_layers_than_configured(directory, layers):
    edit(directory / "config.json", num_hidden_layers=layers)
    refuses(rf"are of 3 layers, but its config.json says {layers} \(num_hidden_layers\)", directory)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "the weights of the model .* cannot be read"),
        ({"hidden_size": 64}, "cannot be read .their shapes are not those of its config.json"),
        ({"transformers_weights": 5}, "names its weights by 5 .transformers_weights., which is no"),
        ({"pgprune": None}, "is damaged .pgprune.; restore it"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0}}, "not finite .*inv_freq"),
    ],
)
def test_odd_values_of_a_configuration(directory, changes, message):
    edit(directory / "config.json", pad_token_id=0, **changes)
    refuses(message, directory, load_model)


def test_a_configuration_that_asks_for_tuples(directory):
    edit(directory / "config.json", return_dict=False)
    model, _ = load_model(ModelConfig(str(directory)))
    assert model.base_model(torch.tensor([[1]])).last_hidden_state.isfinite().all()


def test_a_tokenizer_whose_odd_value_matters_on_a_text(directory):
    edit(directory / "tokenizer_config.json", model_max_length="x")
    refuses("the tokenizer of the model .* cannot be read", directory)


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers(directory, kind):
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"].to(kind)
    save_file(weights, directory / "model.safetensors")
    refuses("hold lm_head.weight as .*, which is no floating-point number", directory)


def test_a_layer_of_a_number_of_thousands_of_digits(directory):
    extra = {f"model.layers.{'9' * 5000}.mlp.up_proj.weight": torch.ones(1)}
    weights = load_file(directory / "model.safetensors")
    save_file(weights | extra, directory / "model.safetensors")
    refuses("are of 4 layers, but its config.json says 3", directory)


def test_no_list_is_as_long_as_a_number_of_layers_that_cannot_be(directory):
    edit(directory / "config.json", num_hidden_layers=10**12, model_type="qwen2")
    refuses(r"says 1,000,000,000,000 layers \(num_hidden_layers\); more than 10,000", directory)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_no_number(directory, value):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = value
    save_file(tensors, path, {"format": "pt"})
    refuses(f"weights model.norm.weight of the model '{directory}' are not", directory, load_model)


def test_a_tensor_that_the_model_has_no_place_for(directory):
    path = directory / "model.safetensors"
    save_file(load_file(path) | {"score.weight": torch.ones(2, 32)}, path, {"format": "pt"})
    check_model(ModelConfig(str(directory)))  # names alone do not tell
    refuses("has 1 tensors .* no place for, such as score.weight", directory, load_model)


def test_biases_that_the_configuration_forgets(directory):
    edit(directory / "config.json", attention_bias=False)
    refuses("has 12 tensors .* such as model.layers.0.self_attn.k_proj.bias", directory, load_model)


def test_frequencies_of_old_checkpoints_are_no_weights(directory):
    path = directory / "model.safetensors"
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(load_file(path) | old, path, {"format": "pt"})
    load_model(ModelConfig(str(directory)))


@pytest.mark.parametrize(
    "values",
    [{"skip": ["attention"]}, {"skip": ["mlp"]}, {"num_attention_heads": 0}]
    + [{"intermediate_size": 0}, {"num_key_value_heads": 2}, {"biases": ["mlp.down_proj"]}],
)
def test_a_layer_of_an_export_that_is_not_as_configured(values, tmp_path):
    model = tiny_model("mistral")
    units = PruningUnits.of(model)
    pruned = prune(model, units, patterns(units)["some"])
    export = tmp_path / "export"
    pruned.save_pretrained(export)
    letters_tokenizer().save_pretrained(export)
    load_any(str(export))
    layers = json.loads((export / "config.json").read_text())["per_layer_config"]
    layers["1"] |= values
    edit(export / "config.json", per_layer_config=layers)
    with pytest.raises(PruningError, match="no place for|lacks|cannot be read"):
        load_any(str(export))


def test_an_index_that_names_a_tensor_which_is_not_there(sharded):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit(sharded / INDEX, weight_map=places | {"model.more.weight": places["lm_head.weight"]})
    refuses("index .* names the tensor 'model.more.weight', which .* does not hold", sharded)


def test_a_tensor_that_the_index_does_not_name_there(sharded):
    """transformers loads it, and of two with a name the one in the last file."""
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    first, last = min(places.values()), max(places.values())
    twice = next(name for name, file in places.items() if file == first)
    tensors = load_file(sharded / last) | {twice: load_file(sharded / first)[twice] + 1}
    save_file(tensors, sharded / last, {"format": "pt"})
    refuses(f"file {last} .* holds the tensor '{twice}', which its weight index", sharded)


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", 1, None, ["a"], ".."])
def test_an_index_that_names_no_file_of_the_model(sharded, file):
    places = json.loads((sharded / INDEX).read_text())["weight_map"]
    edit(sharded / INDEX, weight_map=places | {"lm_head.weight": file})
    refuses("weight index .* is corrupted", sharded)


def test_the_file_that_the_configuration_names_is_the_one_that_is_checked(directory):
    (directory / "model.safetensors").rename(directory / "other.safetensors")
    edit(directory / "config.json", transformers_weights="other.safetensors")
    model, _ = load_model(ModelConfig(str(directory)))
    assert torch.equal(
        model.lm_head.weight, load_file(directory / "other.safetensors")["lm_head.weight"]
    )
    path = directory / "other.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    refuses("other.safetensors' are truncated or corrupted", directory)


def test_an_adapter_beside_the_weights(directory):
    """peft or not: a model has one answer."""
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(directory)}
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    refuses("has an adapter beside its weights .* merge it", directory)
    (directory / "config.json").unlink()
    refuses("holds an adapter without the model that it belongs to", directory)
