"""What it would gain to cut units out of the resident weights once they are gone for good.

    python benchmarks/gone_units.py                      # the 100M shape, on a CPU: minutes
    python benchmarks/gone_units.py --gone 0.1 0.4 --prune-rate 0.5

Random weights. Some units are cut out of a copy of the model by surgery, equally many in each
layer. The same mask, which prunes these units and others, is evaluated by the sliced executor on
both, in alternating order: medians of ratios of processor time of one thread.
"""

import argparse
import statistics
import time

import torch
from torch import Tensor

from pgprune.budget.budget import Budget
from pgprune.evaluation.timing import weight_bytes
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.surgery.layers import prune
from pgprune.surgery.random_models import SHAPES, random_models

_MIB = 2**20


def main() -> None:
    """Prints a line for each share of units that is gone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="100m")
    parser.add_argument("--gone", type=float, nargs="+", default=[0.1, 0.3], help="0.1 0.3")
    parser.add_argument("--prune-rate", type=float, default=0.5, help="of the masks (0.5)")
    parser.add_argument("--rounds", type=int, default=7, help="7")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for gone in options.gone:
        print(measure(options.shape, gone, options.prune_rate, options.rounds), flush=True)


def measure(shape: str, gone: float, rate: float, rounds: int) -> str:
    """Evaluates a mask on the whole model and on what is left of it, and says what that took."""
    device = torch.device("cpu")
    whole = random_models(shape, [], [1], device, torch.float32)[shape]
    units = PruningUnits.of(whole)
    alive, mask = masks(units, gone, rate)  # (n,) each
    rest = prune(whole, units, alive)
    # The sliced executor lays out weights in place, so the model is cut before.
    cases = {"whole": (MaskedLM(whole, units, "sliced"), mask)}
    cases["rest"] = MaskedLM(rest, PruningUnits.of(rest), "sliced"), mask[alive.bool()]  # (n left,)
    ids = torch.randint(units.n, (8, 128), generator=torch.Generator().manual_seed(0))
    ids %= whole.config.vocab_size  # (8, 128)
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    losses: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        # Alternating order, so that a drift of the clock rate meets both alike.
        for name in list(cases)[:: 1 if turn % 2 else -1]:
            lm, own = cases[name]
            started = time.process_time()
            losses[name] = lm.losses(own[None], ids)
            if turn:  # the first one warms up
                seconds[name].append(time.process_time() - started)
    ratio = statistics.median(b / a for a, b in zip(*seconds.values(), strict=True))
    same = "the same bits" if torch.equal(*losses.values()) else "other bits"
    sizes = [weight_bytes(model) / _MIB for model in (whole, rest)]
    return (
        f"{shape}, {gone:.0%} of the units gone, a mask at {rate:g}: {ratio:.2f} of the time, "
        f"{same}; weights {sizes[0]:,.0f} MiB before, {sizes[1]:,.0f} after"
    )


def masks(units: PruningUnits, gone: float, rate: float) -> tuple[Tensor, Tensor]:
    """Makes a mask (n,) of the units that are not gone, and one within it at the prune rate."""
    scores = torch.rand(units.n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alive = Budget(units, gone, scope="uniform").round(scores)
    # Units that are there score one more, so the mask stays within them.
    return alive, Budget(units, rate).round(scores + alive)


if __name__ == "__main__":
    main()
