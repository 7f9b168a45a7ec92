r"""Compare pruning methods: methods x rates x models x seeds, as tables and the paper's figures.

    pgprune compare --methods wanda-sp flap reinforce --rates 0.3 0.5
    pgprune compare --methods all --models builtin DIR --calibration a.jsonl \
        --evaluation b.jsonl --output comparison
    pgprune compare --output comparison --report --into docs/results.md

Every cell is a run in the output directory, and its figures are lines of comparison.jsonl. What is
there is not measured again, so the command can be killed and repeated at any time. Besides the
methods of pgprune prune there are the agents of pgprune train, such as reinforce. Options of
their commands may follow a name: reinforce:init=llm-pruner, random:granularity=layers,budget=units.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from pathlib import Path

from pgprune.experiments.experiment import Experiment
from pgprune.experiments.plan import ComparedConfig, ComparisonConfig, comparison_cells
from pgprune.experiments.records import read_records
from pgprune.experiments.report import publish
from pgprune.experiments.row_plots import plot_all
from pgprune.experiments.row_tables import tables
from pgprune.utils.command_line import run_command


def report(config: ComparisonConfig) -> str:
    """Writes the tables, and the plots in the output directory; returns what to print."""
    records = read_records(config.records)
    said = publish(tables(records, config.at_rate), config)
    plot_all(Path(config.output), records, config.at_rate)
    return said


COMPARE = Experiment(
    __doc__,
    ComparedConfig,
    ComparisonConfig,
    lambda compared, config: [comparison_cells(compared, config)],
    report,
)

main, make_parser = COMPARE.main, COMPARE.make_parser

if __name__ == "__main__":
    run_command(main)
