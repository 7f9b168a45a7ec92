"""An exported model where pgprune is not installed: plain transformers, and lm-eval's command."""

import json
from pathlib import Path

import pytest
import torch

from helpers.environment import Environment
from helpers.finished_run import finished_run
from helpers.masks import patterns
from helpers.tiny import letters_tokenizer, tiny_model
from pgprune.evaluation.zero_shot import Harness, load_tasks
from pgprune.export.export import ExportConfig, export
from pgprune.masking.units import PruningUnits
from pgprune.runs.any_model import load_any

pytestmark = pytest.mark.slow

GENERATE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
ids = tokenizer("pruned", return_tensors="pt")["input_ids"]
print(model.generate(ids, do_sample=False, max_new_tokens=20, min_new_tokens=20)[0].tolist())
"""
TASK = """
task: toy
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: query
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    environment = Environment(tmp_path_factory.mktemp("clean"))
    if environment.run("-c", "import pgprune").returncode == 0:
        pytest.skip("pgprune lies among the other packages, not in an editable install")
    return environment


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned model whose first layer has neither heads nor channels, in float32."""
    folder = tmp_path_factory.mktemp("exported")
    model = tiny_model("llama", torch.float32)
    units = PruningUnits.of(model)
    named = patterns(units)
    mask = named["all heads of layer 1"] & named["the first heads of each layer"]
    run = finished_run(folder, model, units, mask, dtype="float32")
    tokenizer = letters_tokenizer()
    tokenizer.eos_token = "z"  # which lm-eval needs
    tokenizer.save_pretrained(folder / "model")
    return export(run, ExportConfig())


def test_pgprune_is_not_there(environment):
    done = environment.run("-c", "import torch, transformers; import pgprune")
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'pgprune'")


def test_an_exported_model_generates_the_same_text(environment, exported):
    done = environment.run("-c", GENERATE, exported)
    assert done.returncode == 0, done.stderr
    loaded = load_any(str(exported), device="cpu")
    ids = loaded.tokenizer("pruned", return_tensors="pt")["input_ids"]
    options = {"do_sample": False, "max_new_tokens": 20, "min_new_tokens": 20}
    expected = loaded.model.generate(ids, **options)[0].tolist()
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert len(expected) == 26


def test_lm_evals_command_gives_the_accuracy_of_ours(environment, exported, tmp_path):
    pytest.importorskip("lm_eval", reason="zero-shot tasks need lm-eval")
    letters = torch.randint(26, (40, 9), generator=torch.Generator().manual_seed(0)) + ord("a")
    texts = [bytes(row).decode() for row in letters.tolist()]
    rows = [
        {"query": t[:4], "choices": [t[4:6], t[6:]], "gold": i % 2} for i, t in enumerate(texts)
    ]
    data = tmp_path / "toy.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "toy.yaml").write_text(TASK.replace("DATA", str(data)))
    done = environment.run(
        *("-m", "lm_eval", "--model", "hf", "--tasks", "toy", "--device", "cpu"),
        *("--model_args", f"pretrained={exported},trust_remote_code=True"),
        *("--include_path", tmp_path, "--output_path", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())["results"]["toy"]
    loaded = load_any(str(exported), device="cpu")
    ours = Harness(loaded.model, loaded.tokenizer).evaluate(*load_tasks(["toy"], str(tmp_path)))
    assert ours.items == 40
    assert {metric: found[f"{metric},none"] for metric in ours.accuracy} == ours.accuracy
    assert 0 < ours.accuracy["acc"] < 1
