"""Fixtures of all tests: determinism, silence, tiny models and, if present, real ones."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, by whatever imports Triton first

import pytest
import torch
import transformers
from hypothesis import settings

import pgprune
from helpers.listener import Heard
from helpers.masks import Case, case_of
from helpers.tiny import FEW, tiny_arguments, tiny_model
from pgprune.budget.problem import Problem, PruningConfig, make_problem
from pgprune.data.stream import DataConfig
from pgprune.models.load import ModelConfig
from pgprune.utils import figures
from pgprune.utils.progress import listening

pytest.register_assert_rewrite("helpers.command")
from helpers.command import as_options, train  # noqa: E402

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")
pgprune.register()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny models gain nothing from more
PNG = figures.png
gc.disable()  # until all is imported and collected: most of it lives to the end


def pytest_collection_finish() -> None:
    """Spares the collector of this process and of its copies what the imports have left."""
    gc.freeze()
    gc.set_threshold(5_000, 20, 20)  # most of what tests make needs no collector
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def blank() -> Iterator[None]:
    """Figures are drawn but not painted, which takes longer than a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png", lambda figure: b"")
        yield


@pytest.fixture
def painted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are pictures."""
    monkeypatch.setattr(figures, "png", PNG)


@pytest.fixture(params=FEW)
def model(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    """A tiny random model of a few families in float64."""
    return tiny_model(request.param)


@pytest.fixture(params=["heads+channels", "blocks"])
def case(model: transformers.PreTrainedModel, request: pytest.FixtureRequest) -> Case:
    """That model with all patterns of masks over its units, fine and coarse."""
    return case_of(model, request.param)


@pytest.fixture
def heard() -> Iterator[Heard]:
    """What the test tells of its progress."""
    heard = Heard()
    with listening(heard):
        yield heard


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and texts that ``PGPRUNE_ASSETS`` names."""
    folder = Path(os.environ.get("PGPRUNE_ASSETS") or "nowhere")
    if not folder.is_dir():
        pytest.skip("PGPRUNE_ASSETS names no folder of real models and texts")
    return folder


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of an environment with a tiny random model and text."""
    return tiny_arguments(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def problem(arguments: dict[str, Any]) -> Problem:
    """The problem of these arguments, shared by environments."""
    model = ModelConfig(model=arguments["model"], dtype="float64")
    names = ("calibration", "evaluation", "batch_size", "sequence_length")
    data = DataConfig(**{name: arguments[name] for name in names})
    return make_problem(model, data, PruningConfig(prune_rate=0.5), seed=3)


@pytest.fixture(scope="session")
def options(arguments: dict[str, Any]) -> list[str]:
    """The same for the command, with so few tokens a step that 60 steps take a second."""
    few = {"evaluation_windows": 8, "init_samples": 16, "checkpoint_every": 7}
    few["total_timesteps"] = 4  # 4 x 1024 tokens are 64 steps of 2 masks x 2 x 16 tokens
    return as_options(arguments | few)


@pytest.fixture(scope="session")
def likely(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same with a text that is likely for the model, so that repairs do good and ship."""
    folder = tmp_path_factory.mktemp("likely")
    return [*options, *as_options(tiny_arguments(folder, likely=True))]


@pytest.fixture(scope="session")
def undisturbed(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the command that nothing happened to."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert train(*options, f"--output={run}") == 0
    return run
