"""How much of the KL divergence is left where only k tokens are told apart, as a Markdown table.

    python benchmarks/kl_tokens.py
    python benchmarks/kl_tokens.py --model smollm2 --calibration c4

The mask is Wanda-sp's at prune rate 0.3, on the first batch of calibration text. *Others* is the
mean probability that the dense model gives to all tokens but its k most likely ones.
"""

import argparse

from pgprune.budget.problem import Problem
from pgprune.metrics import METRICS
from pgprune.utils.markdown import grid

_TOPS = (1, 16, 64, 128, 512)
_WINDOWS = 8  # for the metric


def main() -> None:
    """Prints one row for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--calibration", default="builtin")
    options = parser.parse_args()
    problem = Problem.make(model=options.model, calibration=options.calibration, prune_rate=0.3)
    lm, batch = problem.lm, problem.stream.next()
    windows = problem.stream.head(_WINDOWS)
    mask = METRICS["wanda-sp"](lm, windows, problem.budget, 0).mask(problem.budget)
    rows, exact = [], 0.0
    for top in (lm.model.get_input_embeddings().weight.shape[0], *reversed(_TOPS)):
        dense = lm.dense_predictions(batch, top)
        found = float(lm.divergences(mask[None], batch, dense).double().mean())
        others = float(dense.log_probabilities[:, -1].exp().mean())
        exact = exact or found
        cells = [f"{found:.4f}", f"{found / exact:.1%}", f"{others:.1%}"]
        rows.insert(0, [f"{top:,}", *cells])
    print(grid(["k", "KL divergence", "of all", "others"], rows))


if __name__ == "__main__":
    main()
