"""GGUF files, read back: every weight where llama.cpp looks for it, and what describes them."""

import json
from pathlib import Path

import pytest
import torch

from helpers.command import command
from helpers.gguf_models import NAMES, SIZE, gguf_run, small_model
from helpers.masks import patterns
from helpers.pruned import equal_layers, parameters
from helpers.tiny import tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export, parameters_in
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.repair.fit import fit_repair
from pgprune.runs.files import RunFile
from pgprune.surgery.architecture import assemble
from pgprune.surgery.portable import portable_layers

gguf = pytest.importorskip("gguf", reason="needs pip install 'pgprune[gguf]'")

FAMILIES = ["llama", "mistral", "qwen2"]
PATTERNS = ["some", "layer 0 and some", "all channels of layer 1", "the last layer"]


def written(folder: Path, model, mask=None, tokenizer=None, **options) -> gguf.GGUFReader:
    """The file of a model pruned by a mask."""
    units = PruningUnits.of(model)
    run = gguf_run(folder, model, units, units.ones() if mask is None else mask, tokenizer)
    return reader(export(run, ExportConfig(format="gguf", **options)))


def reader(folder: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(folder / "model.gguf")


def values(file: gguf.GGUFReader) -> dict:
    return {key: field.contents() for key, field in file.fields.items()}


def weights(file: gguf.GGUFReader) -> dict[str, torch.Tensor]:
    """All tensors in the shapes and formats of torch."""
    bf16 = gguf.GGMLQuantizationType.BF16
    tensors = {}
    for tensor in file.tensors:
        data = torch.from_numpy(tensor.data.copy())
        tensors[tensor.name] = data.view(torch.bfloat16) if tensor.tensor_type == bf16 else data
    return tensors


def halves(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """From the rows that llama.cpp turns, next to each other, to those half a head apart."""
    heads = weight.split(head_dim)
    return torch.cat([torch.cat([head[0::2], head[1::2]]) for head in heads])


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_in_the_file(family, name, tmp_path):
    model = small_model(family)
    units = PruningUnits.of(model)
    mask = patterns(units)[name]
    file = written(tmp_path, model, mask)
    found = weights(file)
    layers = portable_layers(model, units, mask)
    assert torch.equal(found.pop("token_embd.weight"), model.model.embed_tokens.weight)
    assert torch.equal(found.pop("output_norm.weight"), model.model.norm.weight)
    assert torch.equal(found.pop("output.weight"), model.lm_head.weight)
    for new, layer in enumerate(layers):
        for stock, weight in layer.weights.items():
            module, _, kind = stock.rpartition(".")
            own = found.pop(f"blk.{new}.{NAMES[module]}.{kind}")
            if NAMES[module] in ("attn_q", "attn_k"):
                own = halves(own, units.shapes[0].head_dim)
            assert torch.equal(own, weight), stock
    assert not found
    assert parameters_in(tmp_path / "run" / "gguf") == parameters(assemble(model, units, layers))
    keys = values(file)
    assert keys["general.architecture"] == "deci"
    assert keys["deci.block_count"] == len(layers)
    for key, counts in {
        "attention.head_count": [2 * layer.kv_heads for layer in layers],
        "attention.head_count_kv": [layer.kv_heads for layer in layers],
        "feed_forward_length": [layer.channels for layer in layers],
    }.items():
        expected = counts if len({(la.kv_heads, la.channels) for la in layers}) > 1 else counts[0]
        assert keys[f"deci.{key}"] == expected
        assert min(counts) > 0  # llama.cpp miscomputes what is missing


def test_pruned_value_dimensions_come_as_zeros(tmp_path):
    """llama.cpp's deci wants heads of one width."""
    model = small_model("llama")
    units = PruningUnits.of(model, "values")
    mask = units.ones()
    mask[3:6] = 0  # of kv head 0 in layer 0, whose head_dim is 8
    file = reader(export(gguf_run(tmp_path, model, units, mask, None), ExportConfig(format="gguf")))
    assert values(file)["deci.attention.value_length"] == 8
    rows = model.model.layers[0].self_attn.v_proj.weight[:8][mask[:8].bool()]
    found = weights(file)["blk.0.attn_v.weight"]
    assert torch.equal(found[:5], rows) and not found[5:8].any() and found[8:].any()
    assert parameters_in(tmp_path / "run" / "gguf") == parameters(model)


@pytest.mark.parametrize("family", ["mistral", "qwen2"])
def test_biases_of_a_repair_are_in_the_file(family, tmp_path):
    model = small_model(family)
    units = PruningUnits.of(model)
    mask = patterns(units)["layer 0 and some"]
    found = fit_repair(MaskedLM(model, units), mask, tokens(batch=6, length=20), "bias")
    run = gguf_run(tmp_path, model, units, mask, None)
    found.save(run.path / RunFile.REPAIR)
    run.write_results(run.results)
    folder = export(run, ExportConfig(format="gguf"))
    written = weights(reader(folder))
    layers = portable_layers(model, units, mask, repair=found)
    assert parameters_in(folder) == parameters(assemble(model, units, layers))
    for new, layer in enumerate(layers):
        assert layer.biases == ("self_attn.o_proj", "mlp.down_proj")
        for module in layer.biases:
            bias = written[f"blk.{new}.{NAMES[module]}.bias"]
            assert torch.equal(bias, layer.weights[f"{module}.bias"].float())


def test_qwen3_has_no_place_for_biases(tmp_path):
    model = small_model("qwen3")
    units = PruningUnits.of(model)
    run = gguf_run(tmp_path, model, units, patterns(units)["some"], None)
    with pytest.raises(PruningError, match="no place; use --repair least-squares"):
        export(run, ExportConfig(format="gguf", repair="bias"))


def test_the_numbers_that_describe_a_model(tmp_path):
    model = small_model("llama", rms_norm_eps=0.25)
    model.config.rope_parameters["rope_theta"] = 1234.0
    keys = values(written(tmp_path, model))
    expected = {
        "embedding_length": 32,
        "context_length": 64,
        "attention.key_length": 8,
        "attention.value_length": 8,
        "rope.dimension_count": 8,
        "rope.freq_base": 1234.0,
        "attention.layer_norm_rms_epsilon": 0.25,
        "vocab_size": SIZE,
    }
    assert {key: keys[f"deci.{key}"] for key in expected} == expected
    assert not [key for key in keys if "rope.scaling" in key]


@pytest.mark.parametrize(
    ("own", "dtype", "expected", "kind"),
    [
        (torch.bfloat16, "auto", torch.bfloat16, 32),
        (torch.float32, "float16", torch.float16, 1),
        (torch.float64, "auto", torch.float32, 0),
    ],
)
def test_matrices_have_the_number_format_and_the_rest_float32(own, dtype, expected, kind, tmp_path):
    model = small_model("qwen2", own)
    file = written(tmp_path, model, dtype=dtype)
    for name, weight in weights(file).items():
        assert weight.dtype == (expected if weight.ndim == 2 else torch.float32), name
    assert values(file)["general.file_type"] == kind
    down = weights(file)["blk.1.ffn_down.weight"]
    assert torch.equal(down, model.model.layers[1].mlp.down_proj.weight.to(expected))


def test_tied_embeddings_are_written_once(tmp_path):
    model = small_model("llama", tie_word_embeddings=True)
    file = written(tmp_path, model)
    assert "output.weight" not in weights(file)  # llama.cpp then takes token_embd.weight
    assert parameters_in(tmp_path / "run" / "gguf") == parameters(model)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_scaled_rotary_embeddings_become_factors(scaling, tmp_path):
    model = small_model("llama", rope_parameters={"rope_theta": 10000.0} | scaling)
    factors = weights(written(tmp_path, model))["rope_freqs.weight"]
    plain = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(plain / factors, model.model.rotary_emb.inv_freq)
    assert not torch.allclose(factors, torch.ones(4))
    assert parameters_in(tmp_path / "run" / "gguf") == parameters(model)


def test_a_uniform_qwen3_is_an_architecture_of_its_own(tmp_path):
    model = small_model("qwen3")
    units = PruningUnits.of(model)
    mask = equal_layers(units, heads=1, channels=5)
    file = written(tmp_path, model, mask, uniform=True)
    keys, found = values(file), weights(file)
    assert keys["general.architecture"] == "qwen3"
    assert keys["qwen3.attention.head_count"] == 2
    assert keys["qwen3.attention.head_count_kv"] == 1
    assert keys["qwen3.feed_forward_length"] == 5
    assert keys["qwen3.attention.key_length"] == 10
    layer = portable_layers(model, units, mask)[1].weights
    for name in ("q_proj", "k_proj", "q_norm", "k_norm"):  # as they are: rope halves heads there
        own = found[f"blk.1.{NAMES[f'self_attn.{name}']}.weight"]
        assert torch.equal(own, layer[f"self_attn.{name}.weight"]), name


def test_gemma3_has_its_norms_windows_and_both_bases_of_the_rotary_embedding(tmp_path):
    model = small_model("gemma3_text", query_pre_attn_scalar=10)
    units = PruningUnits.of(model, "layers")
    mask = units.ones()
    mask[1] = 0  # the one with full attention
    run = gguf_run(tmp_path, model, units, mask)
    file = reader(export(run, ExportConfig(format="gguf")))
    keys, found = values(file), weights(file)
    assert keys["general.architecture"] == "gemma3"
    assert keys["gemma3.attention.sliding_window"] == 5
    assert keys["gemma3.attention.sliding_window_pattern"] == [True, True]
    assert keys["gemma3.context_length"] == 64  # longer than the window
    assert (keys["gemma3.rope.freq_base"], keys["gemma3.rope.freq_base_swa"]) == (1e6, 1e4)
    assert "output.weight" not in found  # tied
    last = model.model.layers[2]
    for name, norm in (
        ("post_attention_norm", last.post_attention_layernorm),
        ("ffn_norm", last.pre_feedforward_layernorm),
        ("post_ffw_norm", last.post_feedforward_layernorm),
        ("attn_q_norm", last.self_attn.q_norm),
    ):
        assert torch.equal(found[f"blk.1.{name}.weight"], norm.weight + 1), name


def test_a_sliding_window_limits_the_context(tmp_path, heard):
    model = small_model("mistral")  # whose window is 5 tokens
    units = PruningUnits.of(model)
    run = gguf_run(tmp_path, model, units, units.ones())
    folder = export(run, ExportConfig(format="gguf"))
    assert values(reader(folder))["deci.context_length"] == 5
    assert len(heard.notes) == 1
    assert "texts of up to 5 tokens" in heard.notes[0]
    assert heard.notes[0] in (folder / "README.md").read_text()


def test_the_command_and_the_card(tmp_path, capsys):
    model = small_model("llama")
    units = PruningUnits.of(model)
    run = gguf_run(tmp_path, model, units, patterns(units)["all channels of layer 1"])
    command("export", run.path, "--format=gguf")
    folder = run.path / "gguf"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "manifest.json",
        "model.gguf",
    ]
    printed = capsys.readouterr().out
    assert f"llama-cli -m {folder / 'model.gguf'}" in printed
    assert f"{parameters_in(folder):,} parameters" in printed
    card = (folder / "README.md").read_text()
    assert "llama-cli -m model.gguf" in card
    assert "from_pretrained" not in card
    assert f"so this file holds {parameters_in(folder):,} parameters instead of" in card
    assert str(tmp_path) not in card + json.dumps(values(reader(folder)), default=str)
