"""Commands end to end for families whose layers are of several kinds."""

import pytest

from helpers.command import as_options, command
from helpers.mixtures import MIXTURES
from helpers.tiny import tiny_arguments
from pgprune import PruningError

FAMILIES = ["qwen3_5_text", "qwen3_next", "qwen3_5_moe_text", "llama4_text", "gemma4_text"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prune_baseline", "train_agent"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_is_exported_and_checked_and_llama_cpp_cannot_have_it(family, name, tmp_path):
    run, mixture = tmp_path / "run", family in MIXTURES
    words = as_options(tiny_arguments(tmp_path, family) | {"output": run})
    words.append("--granularity=experts" if mixture else "--granularity=channels")
    words += [] if mixture else ["--repair=least-squares"]
    method = "--method=reap" if mixture else "--method=stream-error"
    words.append(method if name == "prune_baseline" else "--total-timesteps=20")
    assert command(name, *words) == 0
    command("export", run)
    assert command("check", run) == 0
    with pytest.raises(PruningError, match=f"no GGUF file of the family {family}"):
        command("export", run, "--format", "gguf", "--output", tmp_path / "gguf")
