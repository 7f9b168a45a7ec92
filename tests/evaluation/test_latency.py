"""The benchmark of inference: the work that is timed, the figures, and the command."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.command import command
from helpers.masks import patterns
from helpers.tiny import letters_tokenizer, tiny_model, tokens
from pgprune import PruningError
from pgprune.evaluation.latency import LatencyConfig, Measurement, generate, measure
from pgprune.evaluation.latency_report import make_report, markdown
from pgprune.evaluation.timing import Clock, weight_bytes
from pgprune.masking.units import PruningUnits
from pgprune.surgery.layers import prune
from pgprune.surgery.random_models import SHAPES, random_models

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models():
    dense = tiny_model("llama", torch.float32)
    units = PruningUnits.of(dense)
    return {"dense": dense, "pruned": prune(dense, units, patterns(units)["some"])}


def test_the_work_is_one_prefill_and_one_step_for_each_new_token(model):
    read, computed = [], []
    hooks = [
        model.base_model.register_forward_hook(
            lambda module, args, kwargs, output: read.append(kwargs["input_ids"]), with_kwargs=True
        ),
        model.get_output_embeddings().register_forward_hook(
            lambda module, args, output: computed.append(output)
        ),
    ]
    ids = tokens(2, 9)
    prefill, decode = generate(model, ids, 6, Clock(CPU))
    for hook in hooks:
        hook.remove()
    assert prefill > 0 and decode > 0
    assert [tuple(part.shape) for part in read] == [(2, 6), (2, 1), (2, 1), (2, 1)]
    assert {tuple(logits.shape) for logits in computed} == {(2, 48)}, "of the last token only"
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[:, 5:]  # the cache is a true one
    torch.testing.assert_close(torch.stack(computed, dim=1), whole)


def test_every_model_is_measured_in_every_setting(models, heard):
    config = LatencyConfig((1, 2), (8, 16), new_tokens=2, repeats=2, threads=1)
    found = measure(models, config)
    expected = [(b, t, name) for b in (1, 2) for t in (8, 16) for name in models]
    assert [(own.batch_size, own.sequence_length, own.model) for own in found] == expected
    assert all(len(own.prefill) == len(own.decode) == 2 for own in found)
    assert heard.notes[-1] == "measuring 2 x 16 tokens, then 2 x 2 one by one"


def test_the_report_says_what_the_rounds_say(models):
    found = [
        Measurement("dense", 4, 8, [2.0, 4.0, 6.0], [1.0, 1.0, 1.0], 1000),
        Measurement("pruned", 4, 8, [1.0, 2.0, 2.0], [0.5, 0.5, 0.5], None),
    ]
    report = make_report(models, found, LatencyConfig(), ["python", "two words"])
    dense, pruned = report["measurements"]
    assert dense["times_faster"]["prefill"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert pruned["times_faster"]["prefill"] == {"median": 2.0, "low": 2.0, "high": 2.5}
    assert pruned["tokens_per_second"] == 8
    assert dense["peak_bytes"] == weight_bytes(models["dense"]) + 1000
    weights = [model["weight_bytes"] for model in report["models"]]
    assert report["models"][1]["weight_share"] == weights[1] / weights[0] < 1
    rows = markdown(report).splitlines()
    assert "| 4 x 8 | pruned | 2,000.0 | 2.00±0.25 | 500.0 | 2.00±0.00 | 8.0 | - |" in rows
    assert "'two words'" in rows[0]


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ("100m", 32_000 * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768) + 768),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-3-8b", 8_030_261_248),
    ],
)
def test_the_shapes_are_those_of_the_published_models(shape, parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.fixture
def tiny_shape(monkeypatch):
    shape = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3}
    monkeypatch.setitem(SHAPES, "100m", shape | {"num_attention_heads": 4})


def test_random_masks_keep_exactly_what_the_budget_says(tiny_shape):
    models = random_models("100m", [0.25, 0.5], [1, 8], CPU, torch.float32)
    names = ["100m", "rate 0.25", "rate 0.25, by 8", "rate 0.5", "rate 0.5, by 8"]
    assert list(models) == names
    per_kind = 3 * 4 * (4 * 32 * 8), 3 * 40 * (3 * 32)  # heads, channels
    dense, *pruned = (sum(p.numel() for p in model.parameters()) for model in models.values())
    removed = [dense - count for count in pruned]
    assert [removed[0], removed[2]] == [sum(per_kind) // 4, sum(per_kind) // 2]
    for name in names[2::2]:
        widths = [layer.mlp.down_proj.in_features for layer in models[name].model.layers]
        assert all(width % 8 == 0 for width in widths)
        assert sum(widths) <= 120 * (1 - float(name.split(",")[0].removeprefix("rate ")))
    again = random_models("100m", [0.5], [1], CPU, torch.float32)
    for model, same in ((models["100m"], again["100m"]), (models["rate 0.5"], again["rate 0.5"])):
        for own, other in zip(model.parameters(), same.parameters(), strict=True):
            assert torch.equal(own, other)


@pytest.fixture(scope="module")
def folder(models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(folder / name)
        letters_tokenizer().save_pretrained(folder / name)
    return folder


QUICK = ("--batch-sizes=2", "--new-tokens=2", "--repeats=2", "--sequence-lengths", "8", "16")


def test_the_command(folder, tmp_path, capsys):
    output = tmp_path / "latency"
    sources = [str(folder / name) for name in ("dense", "pruned", "dense")]
    own = (f"--output={output}", "--threads=1", "--dtype=bfloat16")
    command("benchmark_inference", *sources, *QUICK, *own)
    printed = " ".join(capsys.readouterr().out.split())
    names = sorted(path.name for path in output.iterdir())
    assert names == ["benchmark.json", "benchmark.md", "benchmark.png"]
    report = json.loads((output / "benchmark.json").read_text())
    assert [model["name"] for model in report["models"]] == ["dense", "pruned", sources[0]]
    assert {model["dtype"] for model in report["models"]} == {"bfloat16"}
    assert len(report["measurements"]) == 6
    assert report["config"]["threads"] == report["machine"]["threads"] == 1
    assert "prefill" in printed and "2 x 16" in printed and str(output) in printed
    assert torch.get_num_threads() == 1


def test_random_weights_need_no_model(tiny_shape, capsys):
    random = ("--shape=100m", "--prune-rates=0.5", "--round-to", "1", "8")
    command("benchmark_inference", *random, *QUICK)
    assert "by 8" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "nothing to measure; give models or runs, or --shape"),
        (["builtin", "--shape=100m"], "not both"),
        (["builtin", "--batch-sizes=x"], "--batch-sizes: must be a whole number .* 'x'"),
        (["builtin", "--batch-sizes=1,8"], "write --batch-sizes 1 8, not 1,8"),
        (["builtin", "--sequence-lengths=1.5"], "--sequence-lengths: must be a whole number"),
        (["builtin", "--sequence-lengths=500"], r"builtin has a context of 512 .* 500 \+ 32"),
        (["builtin", "nowhere/"], "'nowhere/' does not exist"),
        (["--shape=100m", "--prune-rates=30"], "--prune-rates: .* below 1, not 30"),
        (["--shape=100m", "--round-to=0"], "--round-to: .* at least 1, not 0"),
        (["--shape=7b"], "shape.* must be one of 100m, llama-2-7b"),
        (["builtin", "--repeats=0"], "repeats.* at least 1"),
    ],
)
def test_mistakes_are_refused(options, says):
    with pytest.raises(PruningError, match=says):
        command("benchmark_inference", *options)


def test_an_existing_output_is_not_touched(tmp_path):
    exists = re.escape(f"{tmp_path} exists; choose another --output")
    with pytest.raises(PruningError, match=exists):
        command("benchmark_inference", "builtin", f"--output={tmp_path}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("output", ["x" * 256, f"below/{'x' * 256}", "/".join(["x" * 99] * 50)])
def test_an_output_with_too_long_a_name_is_refused_before_measuring(output, monkeypatch):
    monkeypatch.setattr("pgprune.evaluation.latency._load", None)  # which would come next
    with pytest.raises(PruningError, match="cannot write .* a name in it is too long; choose"):
        command("benchmark_inference", "builtin", f"--output={output}")
