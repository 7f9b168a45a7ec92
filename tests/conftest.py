"""What all tests share: determinism, silence, tiny models and, where present, real ones."""

import os
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import settings

from tiny import CONFIGS, tiny_model

settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
settings.load_profile("deterministic")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)  # tiny models gain nothing from more


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    """A tiny random model of each family in float64."""
    return tiny_model(request.param)


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and texts that ``PGPRUNE_ASSETS`` names."""
    folder = Path(os.environ.get("PGPRUNE_ASSETS") or "nowhere")
    if not folder.is_dir():
        pytest.skip("PGPRUNE_ASSETS names no folder of real models and texts")
    return folder
