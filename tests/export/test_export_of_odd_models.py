"""What a source model brings along must not make its export unusable, or readable to others."""

import json
import os
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from helpers.finished_run import run_of_pattern
from pgprune.export.export import ExportConfig, export
from pgprune.runs.finished import FinishedRun

WAYS = {
    "hf": ExportConfig(),
    "portable": ExportConfig(portable=True),
    "masked": ExportConfig(format="masked"),
}


@pytest.fixture(params=WAYS.values(), ids=WAYS)
def way(request) -> ExportConfig:
    return request.param


@pytest.fixture
def run(tmp_path) -> FinishedRun:
    return run_of_pattern(tmp_path, "layer 1 and some")


def edit(path: Path, **changes) -> None:
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | changes))


def exported(run: FinishedRun, way: ExportConfig) -> Path:
    """An export that loads and saves with remote code, as users of it do."""
    folder = export(run, way)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(folder.parent / "again")
    AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    return folder


def test_code_that_the_model_once_came_with(run, way):
    own = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    edit(run.path.parent / "model" / "config.json", auto_map=own)
    tokenizer = {"AutoTokenizer": ["own.Tokenizer", None]}
    edit(run.path.parent / "model" / "tokenizer_config.json", auto_map=tokenizer)
    folder = exported(run, way)
    for path in folder.glob("*.json"):
        assert "own." not in path.read_text(), path


def test_generation_settings_that_transformers_loads_but_does_not_save(run, way):
    settings = {"early_stopping": True, "output_scores": True, "temperature": 0.6}
    edit(run.path.parent / "model" / "generation_config.json", eos_token_id=7, **settings)
    found = GenerationConfig.from_pretrained(exported(run, way))
    assert found.eos_token_id == 7
    assert not found.do_sample


def test_a_configuration_that_asks_for_attention_weights(run, way):
    edit(run.path.parent / "model" / "config.json", output_attentions=True)
    exported(run, way)


@pytest.mark.skipif(os.name != "posix", reason="files have no modes")
@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_weights_are_for_those_whom_the_umask_lets_read(run, mask):
    before = os.umask(mask)
    try:
        folder = export(run, ExportConfig())
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    code = {name for name in modes if name.endswith(".py")}  # has the mode of its source
    assert {modes[name] for name in modes.keys() - code} == {0o666 & ~mask}
