"""Measures what a run takes in memory beyond the weights, at the widths of a well-known model.

    python benchmarks/memory.py                          # LLaMA-3-8B's widths, 2 layers: minutes
    python benchmarks/memory.py --shape 100m --layers 12

Random weights, the built-in tokenizer and text; batch 8 x 128, N_s 2, Wanda-sp on 128 windows, four
mask evaluations, evaluation and the sample of text. Layers run one after another, so their number
changes the weights and hardly anything else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pgprune.models.load import ModelConfig, load_model
from pgprune.surgery.random_models import SHAPES

TRAIN = Path(__file__).parents[1] / "scripts" / "train_agent.py"
_MIB = 2**20


def main(arguments: list[str] | None = None) -> int:
    """Makes the model, prunes it in a separate process, and prints the memory used."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-3-8b")
    parser.add_argument("--layers", type=int, default=2, help="default 2")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model, run = Path(folder) / "model", Path(folder) / "run"
        parameters = make(model, options.shape, options.layers)
        command = [sys.executable, str(TRAIN), f"--model={model}", f"--output={run}", "--quiet"]
        # Four evaluations: memory peaks within a step, and steps are alike.
        command += ["--dtype=bfloat16", "--total-timesteps=4", "--evaluation-windows=4"]
        subprocess.run(command, check=True)
        results = json.loads((run / "results.json").read_text())
    beyond = results["memory_beyond_weights_bytes"] / _MIB
    print(
        f"{options.shape}, {options.layers} layers: {2 * parameters / _MIB:,.0f} MiB of weights, "
        f"{beyond:,.0f} MiB beyond them at the peak"
    )
    return 0


def make(folder: Path, shape: str, layers: int) -> int:
    """Writes a random LLaMA in bfloat16 with the built-in tokenizer; returns its parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape] | {"num_hidden_layers": layers, "dtype": "bfloat16"})
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    # A small vocabulary of tokens in use; the embedding keeps the shape's own size.
    _, tokenizer = load_model(ModelConfig("builtin", device="cpu"))
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    sys.exit(main())
