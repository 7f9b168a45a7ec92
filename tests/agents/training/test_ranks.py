"""Processes that share masks, without a run around them; ranks_script.py is what they do."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from helpers.forked import TORCHRUN, Forked
from helpers.tiny import masked_lm, tiny_model, tokens
from pgprune.envs.judge import Judge
from pgprune.errors import ResourceError
from pgprune.utils.memory import within_memory

TESTS = Path(__file__).parents[2]
SCRIPT = TESTS / "helpers" / "ranks_script.py"


@pytest.mark.parametrize(
    ("trouble", "says"),
    [
        ("none", "the same"),
        pytest.param("no model", "rank 2: there is no model here", marks=pytest.mark.slow),
        pytest.param(
            "another model",
            "rank 2 has loaded another model than the main process; put the same one on every host",
            marks=pytest.mark.slow,
        ),
        pytest.param("killed", "rank 2 died", marks=pytest.mark.slow),
        pytest.param("late", "rank 2 has not answered for 0:00:01", marks=pytest.mark.slow),
        pytest.param(
            "no memory",
            "rank 2: there is not enough memory (tried to allocate 20 GiB); choose a smaller "
            "--batch-size or --sequence-length, or --dtype bfloat16",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_three_processes(trouble, says):
    launched = Forked([*TORCHRUN, "--nproc-per-node=3", str(SCRIPT), trouble], caught=True)
    out, err = launched.communicate()
    assert out == says + "\n", err
    assert launched.returncode == (trouble == "killed"), err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_says_what_lowers_it(error):
    model = tiny_model("llama")
    judge = Judge(masked_lm(model))

    def fail(*arguments: object) -> None:
        raise error

    judge.lm.losses = fail
    with pytest.raises(ResourceError, match="not enough memory .*; choose a smaller --batch-size"):
        judge(judge.lm.units.ones()[None], tokens())


def test_other_errors_are_not_about_memory():
    with pytest.raises(RuntimeError, match="shapes"), within_memory():
        raise RuntimeError("shapes do not fit")


def test_the_host_really_says_so():
    with pytest.raises(ResourceError), within_memory():
        torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.slow
def test_the_benchmark_finds_the_same_losses(tmp_path):
    script = TESTS.parent / "benchmarks" / "ranks.py"
    paths = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    quick = ["--shape=builtin", "--batch-size=2", "--sequence-length=16", "--repeats=2"]
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", str(script), *quick, f"--output={tmp_path / 'ranks'}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    assert "by 2 with the same losses" in done.stdout
    report = json.loads((tmp_path / "ranks" / "ranks.json").read_text())
    pairs = zip(report["together"], report["alone"], strict=True)
    low, high = sorted(every / one for every, one in pairs)
    assert low <= report["ratio"]["median"] <= high
