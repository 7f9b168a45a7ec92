"""A repair goes where its mask goes: masked == surgery == exported, for every family."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers.finished_run import assert_close, finished_run, logits, numbers
from helpers.masks import patterns
from helpers.pruned import equal_layers, in_pieces, parameters
from helpers.tiny import letters_tokenizer, masked_lm, tiny_model, tokens
from pgprune import PruningError
from pgprune.export.export import ExportConfig, check_format, export
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.repair.config import added_parameters
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.any_model import check_source, load_any
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.surgery.architecture import assemble
from pgprune.surgery.layers import prune
from pgprune.surgery.portable import portable_layers

WINDOWS = tokens(batch=6, length=20)
PATTERNS = ["some", "all heads of layer 1", "all channels of layer 1", "layer 0 and some"]
MASKED = {"format": "masked"}


def logits_with(lm: MaskedLM, mask: torch.Tensor, found: Repair) -> torch.Tensor:
    with repaired(lm, found):
        return lm.logits(mask[None], tokens())[0]


def repaired_run(folder, model, mask, how) -> tuple[FinishedRun, torch.Tensor]:
    """A finished run that left a repair, and the logits that it measured."""
    lm = masked_lm(model)
    found = fit_repair(lm, mask, WINDOWS, how)
    expected = logits_with(lm, mask, found)
    run = finished_run(folder, model, lm.units, mask, repair=how)
    found.save(run.path / RunFile.REPAIR)
    run.results["parameters"]["pruned"] += added_parameters(lm.model, found)
    run.results["perplexity"]["pruned"] = {"code": 9.876, "prose": 10.5}
    run.write_results(run.results)
    return run, expected


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels"])
@pytest.mark.parametrize("how", ["bias", "least-squares"])
def test_surgery_with_a_repair_is_the_masked_model_with_it(model, how, granularity):
    lm, ids = masked_lm(model, granularity), tokens()
    for name in PATTERNS if granularity == "heads+channels" else ["the first kv head and some"]:
        mask = patterns(lm.units)[name]
        found = fit_repair(lm, mask, WINDOWS, how)
        expected = logits_with(lm, mask, found)
        smaller = prune(model, lm.units, mask, found)
        assert_close(in_pieces(smaller, ids), expected)
        added = added_parameters(lm.model, found)
        assert parameters(smaller) == parameters(model) - lm.units.pruned_parameters(mask) + added
        assert (added > 0) == (how == "bias" and model.config.model_type not in ("llama", "opt"))
        portable = assemble(model, lm.units, portable_layers(model, lm.units, mask, 4, found))
        assert_close(in_pieces(portable, ids), expected)


def test_gated_mlps_that_were_refitted_in_turns():
    model = tiny_model("qwen3")
    units, ids = PruningUnits.of(model), tokens()
    lm, mask = MaskedLM(model, units), patterns(units)["some"]
    found = fit_repair(lm, mask, WINDOWS, "alternating")
    expected = logits_with(lm, mask, found)
    assert_close(prune(model, units, mask, found)(ids).logits, expected)


@pytest.mark.parametrize("granularity", ["blocks", "layers"])
def test_refitted_layers_of_a_shallower_model(model, granularity):
    units, ids = PruningUnits.of(model, granularity), tokens()
    lm, mask = MaskedLM(model, units), patterns(units)["layer 1"]
    found = fit_repair(lm, mask, WINDOWS, "least-squares")
    expected = logits_with(lm, mask, found)
    smaller = prune(model, units, mask, found)
    assert type(smaller) is type(model), "no code of ours is needed"
    assert_close(smaller(ids).logits, expected)


def test_nothing_is_shared_and_the_dense_model_is_untouched(model):
    units = PruningUnits.of(model)
    lm, mask = MaskedLM(model, units), patterns(units)["some"]
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = fit_repair(lm, mask, WINDOWS, "least-squares")
    values = {key: weight.clone() for key, weight in found.weights.items()}
    for parameter in prune(model, units, mask, found).parameters():
        parameter.data.zero_()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(torch.equal(values[key], weight) for key, weight in found.weights.items())


@pytest.mark.parametrize("how", ["bias", "least-squares"])
@pytest.mark.parametrize("portable", [False, True])
def test_the_round_trip(model, how, portable, tmp_path):
    mask = patterns(PruningUnits.of(model))["layer 0 and some"]
    run, expected = repaired_run(tmp_path, model, mask, how)
    folder = export(run, ExportConfig(portable=portable))
    assert_close(logits(folder), expected)
    assert_close(load_any(str(run.path), dtype="float64").model(tokens()).logits, expected)
    counts = json.loads((run.path / "results.json").read_text())["parameters"]
    assert portable or numbers(folder) == counts["pruned"]
    card = (folder / "README.md").read_text()
    assert "| this model | 9.88 | 10.50 |" in card
    assert "| pruned, without repair | 12.35 | not finite |" in card
    words = {"bias": "bias", "least-squares": "least-squares, damping 0.01"}
    assert f"| repair | {words[how]} |" in card


def test_the_masked_format(model, tmp_path):
    units = PruningUnits.of(model)
    mask = patterns(units)["layer 0 and some"]
    run, expected = repaired_run(tmp_path, model, mask, "least-squares")
    folder = export(run, ExportConfig(format="masked"))
    assert_close(logits(folder, trust_remote_code=False), expected)
    assert numbers(folder) == parameters(model)
    weights = load_file(folder / "model.safetensors")
    query = weights[next(n for n in weights if n.endswith("layers.0.self_attn.q_proj.weight"))]
    assert not query.any(), "what is pruned is zero"


def test_uniform_layers_with_weights_refitted_are_a_stock_model(model, tmp_path):
    units = PruningUnits.of(model)
    heads = {} if model.config.model_type == "opt" else {"heads": 1}
    mask = equal_layers(units, channels=6, **heads)
    run, expected = repaired_run(tmp_path, model, mask, "least-squares")
    folder = export(run, ExportConfig(uniform=True))
    assert_close(logits(folder, trust_remote_code=False), expected)
    assert not list(folder.glob("*.py"))


def test_what_is_evaluated_of_a_half_precision_checkpoint_is_what_is_shipped(tmp_path):
    model = tiny_model("mistral", torch.bfloat16)
    units = PruningUnits.of(model)
    mask = patterns(units)["some"]
    run = finished_run(tmp_path, model, units, mask, dtype="auto", repair="bias")
    wide = MaskedLM(tiny_model("mistral", torch.bfloat16).float(), units)  # as a CPU evaluates it
    fit_repair(wide, mask, WINDOWS, "bias").save(run.path / RunFile.REPAIR)
    run.write_results(run.results)
    folder = export(run, ExportConfig())
    weights = load_file(folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert_close(load_any(str(run.path), dtype="float64").model(tokens()).logits, logits(folder))


def refuses(run: FinishedRun, message: str, **options) -> None:
    before = sorted(run.path.rglob("*"))
    with pytest.raises(PruningError, match=message) as error:
        export(run, ExportConfig(**options))
    assert "\n" not in str(error.value)
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_biases_that_a_stock_architecture_lacks(family, tmp_path, monkeypatch):
    model = tiny_model(family)
    mask = equal_layers(PruningUnits.of(model), channels=6, heads=1)
    run, _ = repaired_run(tmp_path, model, mask, "bias")
    monkeypatch.setattr(
        "pgprune.export.reship.chosen_repair", lambda *_: pytest.fail("work was done")
    )
    advice = "no place; use --repair least-squares"
    for how in ("auto", "bias"):
        for writes, options in (
            ("uniform", {"uniform": True}),
            ("format masked", {"format": "masked"}),
        ):
            message = f"stock architecture that --{writes} writes has {advice}"
            refuses(run, message, repair=how, **options)
    config = json.loads((export(run, ExportConfig()) / "config.json").read_text())
    assert config["model_type"] == f"pgprune_{family}", "equal layers are not enough"


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_biases_that_were_there_before_fit_anywhere(family, tmp_path):
    model = tiny_model(family)
    mask = equal_layers(PruningUnits.of(model), channels=6)
    run, expected = repaired_run(tmp_path, model, mask, "bias")
    for options in ({"uniform": True}, MASKED):
        folder = export(run, ExportConfig(**options))
        assert_close(logits(folder, trust_remote_code=False), expected)


def test_an_export_that_could_not_be_is_refused_before_a_run_begins():
    model, tokenizer = tiny_model("mistral"), letters_tokenizer()
    lm = masked_lm(model)
    with pytest.raises(PruningError, match="--format masked writes has no place"):
        check_format("masked", lm, tokenizer, "bias")
    check_format("masked", lm, tokenizer, "least-squares")
    check_format("hf", lm, tokenizer, "bias")


def test_a_repair_that_is_missing_damaged_or_of_another_model(tmp_path):
    model = tiny_model("llama")
    mask = patterns(PruningUnits.of(model))["some"]
    run, _ = repaired_run(tmp_path, model, mask, "least-squares")
    path = run.path / RunFile.REPAIR
    Repair(biases={(7, "heads"): torch.zeros(32)}).save(path)
    run.write_results(run.results)
    refuses(run, "heads of layer 7 are of another model")
    for damage in (lambda: path.write_bytes(path.read_bytes()[:-9]), path.unlink):
        damage()
        refuses(run, "repair.safetensors is (missing|damaged)")
        with pytest.raises(PruningError, match="repair.safetensors is (missing|damaged)"):
            check_source(str(run.path))


def test_damping_without_a_repair_to_make(tmp_path):
    model = tiny_model("llama")
    run, _ = repaired_run(tmp_path, model, patterns(PruningUnits.of(model))["some"], "bias")
    for name, value in (("damping", 0.1), ("damping", "auto"), ("samples", 8)):
        message = f"--repair-{name} is for a repair that is made now"
        refuses(run, message, **{f"repair_{name}": value})
