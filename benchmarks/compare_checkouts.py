"""Compares what two checkouts of this repository find: final masks and perplexities, bit for bit.

    python benchmarks/compare_checkouts.py OLD NEW --assets ASSETS --output DIR

Each checkout prunes the built-in model and stories260K with four agents and five methods, one
process and one thread at a time, with its own ``.venv`` and its own commands. A run that DIR holds
is not repeated. The exit status is the number of cells that differ.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open

AGENTS = ("reinforce", "auto", "cma-es", "evolution")
METHODS = ("wanda-sp", "flap", "spap", "osscar", "slicegpt")


def main() -> int:
    """Runs what is missing, prints a line for each cell, and returns how many differ."""
    options = _parser().parse_args()
    differ = 0
    for model, name in cells(options):
        old, new = (
            run(checkout.resolve(), options.output.resolve() / side, model, name, options)
            for side, checkout in (("old", options.old), ("new", options.new))
        )
        same = fingerprint(old) == fingerprint(new)
        differ += not same
        results = json.loads((new / "results.json").read_text())
        pruned = " ".join(f"{key} {value:.4f}" for key, value in perplexity(results).items())
        print(f"{model:12} {name:10} {'same' if same else 'DIFFERENT':9} {pruned}", flush=True)
    print(f"{differ} cells differ")
    return differ


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Returns the models and the agents or methods to run on each."""
    for model in options.models:
        for name in options.names:
            yield model, name


def run(checkout: Path, place: Path, model: str, name: str, options: argparse.Namespace) -> Path:
    """Makes one run with a checkout's own commands, unless it is there."""
    path = place / f"{model}-{name}"
    if (path / "results.json").exists():
        return path
    words = [str(checkout / ".venv/bin/python")]
    if name in AGENTS:
        words += ["scripts/train_agent.py", "--agent", name]
        words += ["--total-timesteps", str(options.timesteps), "--reward", "plain"]
    else:
        words += ["scripts/prune_baseline.py", "--method", name]
    if model == "builtin":
        words += ["--model", "builtin"]
    else:
        stories = options.assets.resolve() / "text/tinystories/tinystories_1000_clean.jsonl"
        words += ["--model", str(options.assets.resolve() / "models" / model)]
        words += ["--calibration", f"{stories}[:500]", "--evaluation", f"{stories}[500:]"]
    words += ["--seed", "0", "--evaluation-windows", "400", "--output", str(path), "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(words, cwd=checkout, env=environment, check=True)
    return path


def fingerprint(path: Path) -> tuple[str, str]:
    """Digests of a run's final mask and of its exact perplexities, but not of the best mask's."""
    with safe_open(path / "mask.safetensors", "numpy") as file:
        mask = file.get_tensor("mask").tobytes()
    table = json.loads((path / "results.json").read_text())["perplexity"]
    table.pop("best", None)  # chosen on the validation batch
    exact = json.dumps(table, sort_keys=True)  # repr of a float tells all its bits
    return hashlib.sha256(mask).hexdigest(), hashlib.sha256(exact.encode()).hexdigest()


def perplexity(results: dict[str, Any]) -> dict[str, float]:
    """Reads the perplexities of what a run ships, by evaluation set."""
    return dict(results["perplexity"]["pruned"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("old", type=Path, help="a checkout with its .venv")
    add("new", type=Path, help="another one")
    add("--assets", type=Path, default=Path(os.environ.get("PGPRUNE_ASSETS", "assets")))
    add("--output", type=Path, required=True, help="directory of the runs, old/ and new/")
    add("--timesteps", type=int, default=500, help="mask evaluations of agents (default 500)")
    add("--models", nargs="+", default=["stories260K", "builtin"])
    add("--names", nargs="+", default=[*AGENTS, *METHODS], help="agents and methods")
    return parser


if __name__ == "__main__":
    sys.exit(main())
