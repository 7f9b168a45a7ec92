"""A tiny run, and a text that even a tiny model can learn."""

import pytest

from helpers.finetuning_toy import LETTERS
from helpers.finished_run import run_of_pattern
from pgprune.data.training_data import TrainingDataConfig
from pgprune.finetuning.config import FinetuningConfig
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
    return run_of_pattern(tmp_path, "layer 0 and some")
