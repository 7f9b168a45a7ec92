"""What scripts about levels share: value dimensions and channels in one budget of parameters."""

from argparse import ArgumentParser, Namespace

from pgprune.budget.problem import Problem


def add_model(parser: ArgumentParser) -> None:
    """Adds the options of the model, its calibration text and how many windows of that are read."""
    parser.add_argument("--model", default="builtin")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--windows", type=int, default=96, help="of calibration text (default 96)")


def fine_problem(options: Namespace, prune_rate: float = 0.25) -> Problem:
    """Makes the problem of these options."""
    return Problem.make(
        model=options.model,
        calibration=options.calibration,
        granularity="values+channels",
        budget="parameters",
        prune_rate=prune_rate,
    )
