"""A run that never learned but has results, for the tests of what is made of runs."""

from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from helpers.masks import patterns
from helpers.tiny import letters_tokenizer, tiny_model, tokens
from pgprune.agents.training.settings import Settings
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, fingerprint
from pgprune.repair.config import RepairConfig
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run


def finished_run(
    folder: Path,
    model,
    units: PruningUnits,
    mask: torch.Tensor,
    dtype: str = "float64",
    repair: str = "auto",
    family: str = "known",
) -> FinishedRun:
    """A finished run of a model whose answer is a mask."""
    model.save_pretrained(folder / "model")
    letters_tokenizer().save_pretrained(folder / "model")
    settings = Settings(
        model=ModelConfig(model=str(folder / "model"), dtype=dtype, family=family),
        repair=RepairConfig(repair=repair),
    )
    decided = {"model_fingerprint": fingerprint(*model.parameters())}
    run = Run.create(str(folder / "run"), settings.sections(decided), ["python"], "toy")
    run.write_mask({"mask": mask}, units.describe())
    dense = sum(parameter.numel() for parameter in model.parameters())
    perplexity = {"code": 12.345, "prose": float("inf")}
    run.write_results(
        {
            "model": settings.model.model,
            "agent": "reinforce",
            "granularity": units.granularity,
            "budget": "per-kind",
            "prune_rate": {"requested": 0.5, "achieved": units.prune_rate(mask)},
            "parameters": {"dense": dense, "pruned": dense - units.pruned_parameters(mask)},
            "perplexity": {row: perplexity for row in ("dense", "initial", "masked", "pruned")},
            "evaluation": {"sequence_length": 128, "bos": "none", "windows": {"code": 8}},
            "mask_evaluations": 4,
            "tokens": 26624,
            "seconds": 2.5,
            "seed": 0,
            "versions": {"pgprune": "0.1.0"},
        }
    )
    return FinishedRun.open(run.path)


def run_of_pattern(
    folder: Path, pattern: str, model=None, granularity: str = "heads+channels", **options
) -> FinishedRun:
    """A finished run of a tiny Llama, or another model, whose answer is a pattern of units."""
    model = model or tiny_model("llama")
    units = PruningUnits.of(model, granularity)
    return finished_run(folder, model, units, patterns(units)[pattern], **options)


def numbers(directory: Path) -> int:
    """Parameters, counted in the files."""
    count = 0
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        count += sum(torch.Size(shape).numel() for shape in shapes)
    return count


def logits(directory: Path, **options) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64, **options)
    with torch.no_grad():
        return model(tokens()).logits


def assert_close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)
