"""Memory figures of a run."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgprune.utils.memory import memory_now, read_once

CPU = torch.device("cpu")
MEGABYTES = 64


@pytest.mark.skipif(memory_now(CPU) == 0, reason="no figures of memory here")
def test_weights_of_a_file_count_as_loaded_once_they_are_read(tmp_path):
    save_file({"weight": torch.ones(MEGABYTES * 2**18)}, tmp_path / "weights.safetensors")
    before = memory_now(CPU)
    weights = load_file(tmp_path / "weights.safetensors")
    read_once(weights.values())
    assert memory_now(CPU) - before > 0.9 * MEGABYTES * 2**20
