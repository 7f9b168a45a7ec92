"""Helpers of the tests of finetuning: small trainings, a view that records, and comparisons."""

from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.listener import Heard
from helpers.masks import patterns
from helpers.tiny import tiny_model, tokens
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.data.training_data import TrainingWindows
from pgprune.finetuning.batches import EpochBatches
from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.objectives import CrossEntropy, autocast
from pgprune.finetuning.parts import Adapters, LoraConfig, Weights
from pgprune.finetuning.settings import FinetuningSettings
from pgprune.finetuning.training import Trainer, TrainingConfig
from pgprune.losses.windows import model_perplexity
from pgprune.masking.units import PruningUnits
from pgprune.surgery.layers import prune
from pgprune.utils.progress import Phase, listening

LORA = LoraConfig(rank=4)
TRAINING = TrainingConfig(learning_rate=1e-2, batch_size=4)
LETTERS = "thequickbrownfoxjumpsoverthelazydog"


class Listener(Heard):
    """Does something after an update, if asked."""

    def __init__(self, after: int = 0, then=lambda: None, label: str = "finetuning") -> None:
        super().__init__()
        self.after, self.then, self.label = after, then, label

    def begin(self, phase: Phase) -> None:
        super().begin(phase)
        if phase.label == self.label:
            reach = phase.reach

            def reach_and_do(done: int, figures=None) -> None:
                reach(done, figures)
                if done == self.after:
                    self.then()

            phase.reach = reach_and_do


def settings(config, data, **others) -> FinetuningSettings:
    """Of a short training of small adapters, unless something else is asked for."""
    return FinetuningSettings(config, data, **{"training": TRAINING, "lora": LORA} | others)


def finetune(source, config, data, view=None, **others) -> dict:
    with listening(view):
        return Finetuning(str(source), settings(config, data, **others)).run()


def windows(number: int = 10) -> TrainingWindows:
    """Tokens of which some are not learned."""
    ids = tokens(number, 12)
    return TrainingWindows(ids, ids % 5 > 0, "text")


def pruned(family: str = "llama", pattern: str = "layer 0 and some", kinds="heads+channels"):
    """A tiny model without what a pattern of units of some kinds prunes."""
    model = tiny_model(family)
    units = PruningUnits.of(model, kinds)
    return prune(model, units, patterns(units)[pattern]).requires_grad_(False)


def trainer(model, objective=None, seed: int = 0, train: str = "lora", **changes) -> Trainer:
    """A training of ``windows()``, three updates an epoch."""
    own = {field.name for field in fields(LoraConfig)}
    lora = LoraConfig(**{name: value for name, value in changes.items() if name in own})
    values = {name: value for name, value in changes.items() if name not in own}
    config = TrainingConfig(**{"batch_size": 4, "learning_rate": 1e-2} | values)
    part = Adapters(model, lora, seed) if train == "lora" else Weights(model, train == "layers")
    batches = EpochBatches(windows(), config.batch_size, seed, 3 * config.epochs)
    objective = objective or CrossEntropy(autocast(config.precision, torch.device("cpu")))
    return Trainer(part, batches, objective, config, config.learning_rate, seed)


def trained(model, steps: int | None = None, **changes) -> Trainer:
    made = trainer(model, **changes)
    while made.step < (made.total if steps is None else steps):
        made.advance()
    return made


def weights(made: Trainer) -> dict[str, torch.Tensor]:
    """What is trained, copied."""
    return {name: p.detach().clone() for name, p in made.part.parameters.items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


def perplexity(directory: Path, config: FinetuningConfig) -> float:
    """Of the text, with nothing of ours but the loss."""
    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    sets = evaluation_windows(
        DataConfig(evaluation=config.evaluation, sequence_length=16), tokenizer
    )
    return model_perplexity(model, sets["text"])


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
