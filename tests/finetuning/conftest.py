"""A tiny run, and a text that even a tiny model can learn."""

import pytest

from helpers.finetuning_toy import LETTERS
from helpers.finished_run import finished_run
from helpers.masks import patterns
from helpers.tiny import tiny_model
from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.instructions import TrainingDataConfig
from pgprune.masking.units import PruningUnits
from pgprune.runs.run import Run


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> str:
    """Something that even a tiny model can learn."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(LETTERS * 60)
    return str(path)


@pytest.fixture
def config(text) -> FinetuningConfig:
    return FinetuningConfig(evaluation=text, evaluation_length=16, dtype="float32")


@pytest.fixture
def data(text) -> TrainingDataConfig:
    return TrainingDataConfig(data=text, samples=40, sequence_length=16)


@pytest.fixture
def run(tmp_path) -> Run:
    model = tiny_model("llama")
    units = PruningUnits.of(model)
    return finished_run(tmp_path, model, units, patterns(units)["layer 0 and some"])
