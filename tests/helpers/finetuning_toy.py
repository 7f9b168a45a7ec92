"""Helpers of the tests of finetuning: a small LoRA, a view that records, and comparisons."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.listener import Heard
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.lora import LoraConfig
from pgprune.losses.windows import model_perplexity
from pgprune.utils.progress import Phase, listening

LORA = LoraConfig(learning_rate=1e-2, batch_size=4, rank=4)
LETTERS = "thequickbrownfoxjumpsoverthelazydog"


class Listener(Heard):
    """Does something after an update, if asked."""

    def __init__(self, after: int = 0, then=lambda: None) -> None:
        super().__init__()
        self.after, self.then = after, then

    def begin(self, phase: Phase) -> None:
        super().begin(phase)
        if phase.label == "finetuning":
            reach = phase.reach

            def reach_and_do(done: int, figures) -> None:
                reach(done, figures)
                if done == self.after:
                    self.then()

            phase.reach = reach_and_do


def finetune(source, config, data, lora=LORA, view=None) -> dict:
    with listening(view):
        return Finetuning(str(source), config, data, lora).run()


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
