"""Exported directories in the hands of plain transformers, with pgprune and without."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from helpers.finished_run import assert_close, finished_run, logits
from helpers.masks import patterns
from helpers.tiny import FEW, tiny_model, tokens
from pgprune.export.export import ExportConfig, export
from pgprune.hub_code import modeling_pgprune
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.registration import pruned_classes
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import repaired
from pgprune.runs.files import RunFile

CODE, PARTS, CLASSES = "modeling_pgprune.py", "layer_parts.py", "family_classes.py"
HEAD, FITTED, FUSED = "classification.py", "fitted_layers.py", "fused.py"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An exported model of each family, with the logits that it must have beside it.

    All have a bias repair, for which some families have biases and others get some. Two more have
    lost value dimensions.
    """
    folders = {}
    names = {family: ("heads+channels", "layer 0 and some") for family in FEW}
    fewer_values = ("values+channels", "the first kv head and some")
    for name, (granularity, pattern) in (
        names | {"llama-values": fewer_values, "opt-values": fewer_values}
    ).items():
        folder = tmp_path_factory.mktemp(name)
        model = tiny_model(name.removesuffix("-values"))
        units = PruningUnits.of(model, granularity)
        mask = patterns(units)[pattern]
        run = finished_run(folder, model, units, mask)
        lm = MaskedLM(model, units)
        found = fit_repair(lm, mask, tokens(batch=6, length=20), "bias")
        found.save(run.path / RunFile.REPAIR)
        run.write_results(run.results)
        folders[name] = export(run, ExportConfig(output=str(folder / "hf")))
        with repaired(lm, found):
            expected = lm.logits(mask[None], tokens())[0]
        save_file({"logits": expected}, folder / "expected.safetensors")
    return folders


WITHOUT_PGPRUNE = """
import sys
sys.modules["pgprune"] = None  # importing it fails
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
generator = torch.Generator().manual_seed(0)
ids = torch.randint(48, (2, 9), generator=generator)
try:
    AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("loaded without trust")
for folder in sys.argv[1:]:
    trust = {"trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, **trust)
    with torch.no_grad():
        expected = load_file(folder + "/../expected.safetensors")["logits"]
        error = (model(ids).logits - expected).abs().max()
    assert error <= 1e-10, error
    assert AutoModel.from_pretrained(folder, **trust)(ids).last_hidden_state.shape == (2, 9, 32)
    text = AutoTokenizer.from_pretrained(folder, **trust)("abc", return_tensors="pt").input_ids
    plain = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached, uncached = (model.generate(text, use_cache=use, **plain) for use in (True, False))
    assert cached.tolist() == uncached.tolist() and cached.shape == (1, 8)
    print(type(model).__module__)
"""


def test_an_environment_without_pgprune_loads_and_generates(exported, tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", WITHOUT_PGPRUNE, *map(str, exported.values())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules = done.stdout.split()
    assert len(modules) == len(exported)
    assert all(module.startswith("transformers_modules.") for module in modules)


@pytest.mark.parametrize(
    "code",
    [
        "import pgprune; pgprune.register(); from transformers import AutoModelForCausalLM",
        "from transformers import LlamaForCausalLM, AutoModelForCausalLM; import pgprune\n"
        "pgprune.register(); pgprune.register()",
    ],
)
def test_a_registered_model_needs_no_remote_code(exported, code):
    code += (
        "\nimport sys\nfor folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)\n"
        "    assert type(model).__module__ == 'pgprune.hub_code.modeling_pgprune'"
    )
    command = [sys.executable, "-c", code, *map(str, exported.values())]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_auto_map_is_complete_and_in_the_order_that_vllm_needs(exported):
    for family in FEW:
        folder = exported[family]
        config = json.loads((folder / "config.json").read_text())
        assert config["model_type"] == f"pgprune_{family}"
        assert config["architectures"] == [pruned_classes(family).causal_lm.__name__]
        assert list(config["auto_map"])[:3] == ["AutoConfig", "AutoModel", "AutoModelForCausalLM"]
        assert list(config["auto_map"])[3:] == ["AutoModelForSequenceClassification"]
        assert set(config["per_layer_config"]) <= {"0", "1", "2"}


def test_a_loaded_model_saves_everything_again(exported, tmp_path):
    """As after recovery."""
    for folder in exported.values():
        again = tmp_path / folder.parent.name
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(again)
        for code in (CODE, PARTS, CLASSES, HEAD, FITTED, FUSED):
            assert (again / code).read_bytes() == (folder / code).read_bytes()
        configs = [json.loads((path / "config.json").read_text()) for path in (folder, again)]
        assert configs[0] == configs[1]
        assert_close(logits(again), logits(folder))


def test_the_code_imports_nothing_of_ours(exported):
    """But the files beside it, which travel with it."""
    for code, beside in (
        (
            CODE,
            [
                "from .family_classes import FamilyClasses",
                "from .fitted_layers import fit_head_counts, fitted_layer, layout_of",
                "from .layer_parts import Constant, Headless, add_biases, keep_values",
            ],
        ),
        (CLASSES, ["from .classification import SequenceClassifier"]),
        (PARTS, ["from .fused import Joined"]),
        (
            FITTED,
            [
                "from .fused import Fused, count_heads, open_projections",
                "from .layer_parts import Constant, Headless, add_biases, keep_values",
            ],
        ),
        (FUSED, []),
        (HEAD, []),
    ):
        text = (exported["llama"] / code).read_text()
        imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
        assert imports
        assert [line for line in imports if "pgprune" in line or "from ." in line] == beside


def test_classes_are_made_when_they_are_asked_for():
    """Each once; what transformers or this code lacks is an ordinary AttributeError."""
    llama = modeling_pgprune.PGPruneLlamaForCausalLM
    assert llama is modeling_pgprune.PGPruneLlamaForCausalLM
    assert issubclass(llama, transformers.LlamaForCausalLM)
    assert (llama.__module__, llama.__name__) == (
        "pgprune.hub_code.modeling_pgprune",
        "PGPruneLlamaForCausalLM",
    )
    assert pickle.loads(pickle.dumps(llama)) is llama
    for name in ("PGPruneNobodyModel", "PGPruneLlama", "LlamaModel", "SliceGPTLlamaModel", "Model"):
        with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
            getattr(modeling_pgprune, name)
