"""How much of the difference between layers stream-error should take out, as a Markdown table.

    python benchmarks/levelling.py --assets ASSETS

One-shot masks at prune rate 0.5, of stream-error as they are and of stream-error-refit after a
least-squares repair. ASSETS holds models/stories260K, models/babyllama-361 and text/tinystories;
without it only the built-in model is looked at.
"""

import argparse
from pathlib import Path

from pgprune.budget.problem import Problem, PruningConfig, make_problem
from pgprune.data.stream import DataConfig, evaluation_windows
from pgprune.masking.perplexity import perplexity
from pgprune.metrics.stream_error import stream_error
from pgprune.models.load import ModelConfig
from pgprune.repair.fit import fit_repair
from pgprune.repair.repair import Repair, repaired
from pgprune.utils.markdown import grid

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
_TINYSTORIES = "text/tinystories/tinystories_1000_clean.jsonl"


def main() -> None:
    """Prints one row for each model, metric and evaluation text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--prune-rate", type=float, default=0.5)
    options = parser.parse_args()
    rows = [
        row
        for name, problem in problems(options.assets, options.prune_rate).items()
        for refit in (False, True)
        for row in measure(name, refit, problem)
    ]
    print(grid(["model", "metric", "text", *(f"{level:g}" for level in LEVELS)], rows))


def problems(assets: Path | None, rate: float) -> dict[str, Problem]:
    """Loads the available models, with their text and budget."""
    pruning = PruningConfig(prune_rate=rate)
    found = {"builtin": make_problem(ModelConfig(), DataConfig(evaluation_windows=400), pruning)}
    if assets is not None:
        text = assets / _TINYSTORIES
        data = DataConfig(f"{text}[:500]", f"{text}[500:1000]", evaluation_windows=400)
        for name in ("stories260K", "babyllama-361"):
            model = ModelConfig(model=str(assets / "models" / name))
            found[name] = make_problem(model, data, pruning)
    return found


def measure(name: str, refit: bool, problem: Problem) -> list[list[str]]:
    """Measures the rows of one model and metric."""
    sets = evaluation_windows(problem.data, problem.tokenizer)
    windows, lm = problem.stream.head(128), problem.lm  # (128, T)
    rows = {text: [name, "stream-error-refit" if refit else "stream-error", text] for text in sets}
    for level in LEVELS:
        measured = stream_error(lm, windows, problem.budget, 0, refit=refit, levelling=level)
        # The level changes which layers give up units, never how many units in all.
        mask = measured.mask(problem.budget)
        found = fit_repair(lm, mask, windows, "least-squares") if refit else Repair()
        with repaired(lm, found):
            for text, ids in sets.items():
                rows[text].append(f"{perplexity(lm, mask, ids):.2f}")
    return list(rows.values())


if __name__ == "__main__":
    main()
