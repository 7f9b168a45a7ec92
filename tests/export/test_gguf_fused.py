"""GGUF files of models whose stock layers fuse projections: parts follow each other there."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.gguf_models import gguf_run, small_model
from helpers.pruned import equal_layers
from helpers.tiny import tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, export
from pgprune.export.gguf import check_scope
from pgprune.masking.units import PruningUnits
from pgprune.surgery.layers import prune

gguf = pytest.importorskip("gguf", reason="needs pip install 'pgprune[gguf]'")

STOCK = {  # names in layer 0 of a stock checkpoint: query, key and value, output, up, down
    "phi3": ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "gpt_neox": (
        "attention.query_key_value",
        "attention.dense",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}
FILE = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def uniform(family: str, folder, granularity: str = "channels", **changes):
    """The file of a model with equal layers, and that model."""
    model = small_model(family, **changes)
    units = PruningUnits.of(model, granularity)
    mask = equal_layers(units, channels=8)
    if granularity == "layers":
        mask[1] = 0
    folder = export(gguf_run(folder, model, units, mask), ExportConfig(format="gguf"))
    return folder / "model.gguf", prune(model, units, mask)


@pytest.mark.parametrize("family", STOCK)
def test_every_weight_is_where_llama_cpp_looks_for_it(family, tmp_path):
    path, model = uniform(family, tmp_path)
    file = gguf.GGUFReader(path)
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in file.tensors}
    assert sum(map(torch.numel, found.values())) == model.num_parameters()
    stock = {
        name.split(".0.", 1)[1]: weight
        for name, weight in model.state_dict().items()
        if ".0." in name
    }
    for theirs, ours in zip(FILE, STOCK[family], strict=True):
        for kind in ("weight", "bias"):
            if (weight := stock.get(f"{ours}.{kind}")) is None:
                continue
            if family == "gpt2":
                weight = weight.T if kind == "weight" else weight
            if theirs == "attn_qkv" and family == "gpt_neox":  # as llama.cpp's converter does
                heads = weight.view(4, 3, 8, *weight.shape[1:])
                weight = torch.cat([heads[:, part].flatten(0, 1) for part in range(3)])
            assert torch.equal(found[f"blk.0.{theirs}.{kind}"], weight), theirs
    keys = {key: field.contents() for key, field in file.fields.items()}
    architecture = keys["general.architecture"]
    assert architecture == family.replace("_", "")
    assert keys[f"{architecture}.feed_forward_length"] == 8
    assert keys[f"{architecture}.attention.head_count"] == 4
    turned = {"phi3": 4, "gpt_neox": 4, "gpt2": None}[family]  # half a head
    assert keys.get(f"{architecture}.rope.dimension_count") == turned
    epsilon = "attention.layer_norm_rms_epsilon" if family == "phi3" else (
        "attention.layer_norm_epsilon"
    )  # fmt: skip
    assert keys[f"{architecture}.{epsilon}"] == pytest.approx(1e-5)
    assert keys.get("gptneox.use_parallel_residual", True)


def test_transformers_reads_a_file_of_gpt2(tmp_path):
    pytest.importorskip("accelerate", reason="needs pip install accelerate")
    # The numbers that transformers does not read are those of any GPT-2.
    usual = {"max_position_embeddings": 1024, "n_inner": None}
    path, model = uniform("gpt2", tmp_path, "layers", **usual)
    loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits)


@pytest.mark.parametrize("family", STOCK)
def test_pruned_heads_are_refused_before_a_run_and_after(family, tmp_path):
    model = small_model(family)
    for granularity in ("heads+channels", "values"):
        with pytest.raises(PruningError, match="fill the width.* choose --granularity channels"):
            check_scope(model.config, granularity, "uniform")
    check_scope(model.config, "channels", "uniform")
    with pytest.raises(PruningError, match="are all equal"):
        check_scope(model.config, "channels", "global")
    units = PruningUnits.of(model)
    run = gguf_run(tmp_path, model, units, equal_layers(units, heads=1))
    with pytest.raises(PruningError, match="fill the width"):
        export(run, ExportConfig(format="gguf"))


def test_rotary_factors_for_long_texts_are_refused(tmp_path):
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    rope |= {"short_factor": [1.0, 1.1], "long_factor": [2.0, 2.2]}
    with pytest.raises(PruningError, match="type 'longrope' cannot be written"):
        uniform("phi3", tmp_path, rope_parameters=rope, original_max_position_embeddings=32)
