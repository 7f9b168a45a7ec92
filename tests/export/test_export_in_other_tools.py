"""Exports in tools that people use with any model of the hub: training, adapters, placement."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from helpers.finished_run import assert_close, logits, run_of_pattern
from helpers.tiny import tokens
from pgprune.export.export import ExportConfig, export

pytestmark = pytest.mark.slow
GRANULARITIES = {"heads+channels": "layer 0 and some", "values+channels": "some"}


@pytest.fixture(params=GRANULARITIES)
def folder(request, tmp_path) -> Path:
    run = run_of_pattern(tmp_path, GRANULARITIES[request.param], granularity=request.param)
    return export(run, ExportConfig())


def load(folder: Path, **options) -> PreTrainedModel:
    options = {"dtype": torch.float64, "trust_remote_code": True} | options
    return AutoModelForCausalLM.from_pretrained(folder, **options)


def test_placed_by_accelerate(folder):
    pytest.importorskip("accelerate")
    with torch.no_grad():
        assert_close(load(folder, device_map="auto")(tokens()).logits, logits(folder))


def test_saved_in_shards(folder, tmp_path):
    load(folder).save_pretrained(tmp_path / "again", max_shard_size="8KB")
    assert len(list((tmp_path / "again").glob("*.safetensors"))) > 1
    assert_close(logits(tmp_path / "again"), logits(folder))


def test_trained_by_the_trainer(folder, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    texts = [{"input_ids": row, "labels": row} for row in tokens(batch=4)]
    arguments = TrainingArguments(
        str(tmp_path / "trainer"), max_steps=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(load(folder, dtype=torch.float32), arguments, train_dataset=texts)
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    after = logits(tmp_path / "trained")
    assert bool(after.isfinite().all()) and not torch.equal(after, logits(folder))


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_is_trained_merged_and_saved(folder, tmp_path):
    peft = pytest.importorskip("peft")
    # Layers without attention or MLP have nothing to adapt; in value layers it is called linear.
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(load(folder), config)
    with torch.no_grad():
        adapted = model(tokens()).logits
        merged = model.merge_and_unload()
        assert_close(merged(tokens()).logits, adapted, 1e-6)
    merged.save_pretrained(tmp_path / "merged")
    assert_close(logits(tmp_path / "merged"), adapted, 1e-6)


def test_quantized_by_torchao(folder):
    quantization = pytest.importorskip("torchao.quantization")
    model = load(folder, dtype=torch.float32)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    with torch.no_grad():
        error = model(tokens()).logits.double() - logits(folder)
    assert float(error.abs().max()) < 0.2 * float(logits(folder).abs().max())


def test_two_models_of_one_directory_do_not_share_weights(folder):
    first, second = load(folder), load(folder)
    first.lm_head.weight.data.zero_()
    assert second.lm_head.weight.any()
