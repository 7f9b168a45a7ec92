import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import BloomConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.models.load import ModelConfig, load_model
from pgprune.models.rows import FAMILIES
from pgprune.models.source import BUILTIN
from pgprune.utils.devices import choose_device

TINY = {
    "vocab_size": 16,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def directory(tmp_path) -> Path:
    """A tiny model in float16 with its tokenizer, as save_pretrained leaves them."""
    LlamaForCausalLM(LlamaConfig(**TINY)).half().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    return tmp_path


def save_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)


def load(model: Path | str, device: str = "cpu", **options):
    return load_model(ModelConfig(model=str(model), device=device, **options))


def refuses(message: str, model: Path | str, **options) -> None:
    with pytest.raises(PruningError, match=message) as error:
        load(model, **options)
    assert "\n" not in str(error.value)


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def no_weights_are_read(monkeypatch):
    """Fails if weights are read before the error is raised."""

    def read(*args, **kwargs):
        pytest.fail("weights were read")

    monkeypatch.setattr("pgprune.models.load.AutoModelForCausalLM.from_pretrained", read)


def test_the_model_is_frozen(directory):
    model, tokenizer = load(directory)
    assert not model.training
    assert not model.config.use_cache
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer("a")["input_ids"] == [0]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "opt"])
def test_every_family_loads(tmp_path, family):
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = TINY | {"ffn_dim": 24, "word_embed_proj_dim": 32, "head_dim": 8}
    saved = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    saved.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model, _ = load(tmp_path)
    assert family in FAMILIES
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("auto", torch.float32), ("float16", torch.float16), ("float64", torch.float64)],
)
def test_dtype_and_auto_is_float32_on_the_cpu(directory, dtype, expected):
    assert load(directory, dtype=dtype)[0].dtype == expected


def test_attention_implementation(directory):
    model, _ = load(directory, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"


def test_sharded_weights(directory):
    whole = load(directory, dtype="float16")[0]
    (directory / "model.safetensors").unlink()
    whole.save_pretrained(directory, max_shard_size="4KB")
    assert len(shards := sorted(directory.glob("*.safetensors"))) > 1
    model, _ = load(directory, dtype="float16")
    assert all(map(torch.equal, model.parameters(), whole.parameters()))
    shards[1].unlink()
    refuses(f"no weights: {shards[1].name} is missing", directory)


@pytest.mark.skipif(not BUILTIN.is_dir(), reason="the built-in model is not trained yet")
def test_the_builtin_model_runs_in_float32():
    model, tokenizer = load_model(ModelConfig())
    assert model.dtype == torch.float32
    assert len(tokenizer) <= model.config.vocab_size


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for absent in ("cuda:99", "tpu", "cuda:-1", ""):
        with pytest.raises(PruningError, match=f"no device '{absent}'; this machine has cpu"):
            choose_device(absent)


@pytest.mark.usefixtures("no_weights_are_read")
class TestRefusedBeforeWeightsAreRead:
    def test_an_absent_device(self, directory):
        refuses("no device 'cuda:99'", directory, device="cuda:99")

    def test_an_unknown_dtype(self, directory):
        refuses("dtype must be one of .*'int8'", directory, dtype="int8")

    def test_bfloat16_on_a_gpu_without_it(self, directory, monkeypatch):
        gpu = torch.device("cuda:1")
        monkeypatch.setattr("pgprune.models.load.choose_device", lambda name: gpu)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
        message = "device cuda:1 has no bfloat16; choose --dtype float16 or float32"
        refuses(message, directory, dtype="bfloat16")
        edit_config(directory, dtype="bfloat16")
        refuses(message, directory, dtype="auto")
        with pytest.raises(pytest.fail.Exception, match="weights were read"):
            load(directory, dtype="float16")

    def test_a_device_map_without_accelerate(self, directory, monkeypatch):
        refuses("device_map must be one of auto", directory, device_map="balanced")
        refuses("contradict", directory, device_map="auto", device="cpu")
        monkeypatch.setattr("pgprune.models.load.find_spec", lambda name: None)
        refuses("pip install accelerate", directory, device_map="auto", device="auto")

    def test_no_directory(self, directory):
        refuses("does not exist", directory / "absent")
        refuses("is not a directory", directory / "config.json")

    def test_no_config(self, directory):
        (directory / "config.json").unlink()
        refuses("has no config.json", directory)

    def test_a_broken_config(self, directory):
        (directory / "config.json").write_text("{")
        refuses("configuration .* not a valid JSON", directory)

    def test_impossible_values_in_the_config(self, directory):
        edit_config(directory, num_attention_heads="many")
        refuses("configuration .* cannot be read", directory)

    @pytest.mark.parametrize("family", ["xglm", None])
    def test_an_unknown_family(self, directory, family):
        BloomConfig().save_pretrained(directory)
        edit_config(directory, model_type=family)
        refuses("llama, mistral, qwen2, qwen3,", directory)

    def test_a_variant_that_cannot_be_pruned(self, directory):
        edit_config(directory, model_type="opt", do_layer_norm_before=False)
        refuses("do_layer_norm_before", directory)

    def test_no_weights(self, directory):
        (directory / "model.safetensors").unlink()
        refuses("has no weights: model.safetensors is missing", directory)

    def test_a_pickle(self, directory):
        (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
        refuses("convert it to safetensors", directory)

    @pytest.mark.parametrize("left", [0, 5, 200, -1])
    def test_truncated_weights(self, directory, left):
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:left])
        refuses("truncated or corrupted", directory)

    @pytest.mark.parametrize("content", ["{", "[]", "{}"])
    def test_a_corrupted_index(self, directory, content):
        (directory / "model.safetensors").unlink()
        (directory / "model.safetensors.index.json").write_text(content)
        refuses("index .* is corrupted", directory)

    def test_no_tokenizer(self, directory):
        (directory / "tokenizer.json").unlink()
        (directory / "tokenizer_config.json").unlink(missing_ok=True)
        refuses("tokenizer .* cannot be read", directory)

    def test_a_hub_id_without_network(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        refuses("'nobody/nothing' cannot be read .*; check the hub id and", "nobody/nothing")


def test_a_checkpoint_that_lacks_some_weights(directory):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    refuses("lacks 1 of its weights, such as model.layers.1.mlp.up_proj.weight", directory)


def test_weights_of_another_shape(directory):
    edit_config(directory, intermediate_size=20)
    refuses("weights .* cannot be read", directory)


def test_remote_code_is_never_run(directory):
    (directory / "evil.py").write_text("raise SystemExit('ran')")
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit_config(directory, auto_map=code)
    assert isinstance(load(directory)[0], LlamaForCausalLM)


@pytest.mark.gpu
def test_on_a_gpu_auto_keeps_the_checkpoints_own_dtype(directory):
    model, _ = load(directory, device="auto")
    assert model.device.type == "cuda"
    assert model.dtype == torch.float16


@pytest.mark.gpu
def test_device_map(directory):
    pytest.importorskip("accelerate")
    assert load(directory, device="auto", device_map="auto")[0].device.type == "cuda"


@pytest.mark.parametrize("name", ["stories260K", "babyllama-361"])
def test_real_checkpoints(name, assets):
    model, tokenizer = load(assets / "models" / name)
    assert model.dtype == torch.float32
    assert len(tokenizer) <= model.config.vocab_size


def test_a_directory_is_stored_by_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert ModelConfig("model").absolute().model == str(tmp_path / "model")
    for name in ("builtin", "owner/name", "smollm2"):
        assert ModelConfig(name).absolute() == ModelConfig(name)


def test_units_that_a_family_refuses_are_refused_before_weights_are_read(tmp_path, monkeypatch):
    tiny_model("olmo2").save_pretrained(tmp_path)
    letters_tokenizer().save_pretrained(tmp_path)
    config = ModelConfig(str(tmp_path))
    load_model(config, kinds=("channels",))
    monkeypatch.setattr("pgprune.models.load._load_weights", None)
    with pytest.raises(PruningError, match=r"choose a --granularity without heads, values$"):
        load_model(config, kinds=("heads", "channels"))
