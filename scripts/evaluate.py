"""Measure models and runs: perplexity on text, and accuracy on zero-shot tasks.

    pgprune evaluate runs/NAME                    # the run's pruned model
    pgprune evaluate builtin runs/NAME            # beside the dense one
    pgprune evaluate MODEL runs/NAME --evaluation wikitext:wikitext-2-raw-v1:test
    pgprune evaluate MODEL runs/NAME --evaluation none --tasks paper

Models are `builtin`, hub ids, and directories, exported ones included. All are shown side by side.
The results of a run are added to its evaluations.jsonl. Perplexity in papers is often that of
windows of 2048 tokens over all of the text: --sequence-length 2048 --evaluation-windows 0.
"""

if __name__ == "__main__":
    import startup

    startup.begin()


from collections.abc import Sequence

from transformers.utils import logging

from pgprune.evaluation.evaluate import Evaluation, EvaluationConfig
from pgprune.evaluation.tables import line, print_tables
from pgprune.utils.command_line import ArgumentParser, from_arguments, run_command
from pgprune.utils.jsonl import Record
from pgprune.utils.progress import note
from pgprune.utils.progress_view import showing


def main() -> int:
    """Parses the options, evaluates, and prints the tables."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # Intermixed: options may stand between the models.
    arguments = make_parser().parse_intermixed_args()
    # A model that is named twice is evaluated once.
    models = list(dict.fromkeys(arguments.models))
    config = from_arguments(EvaluationConfig, arguments)
    records: list[Record] = []
    with showing(config.quiet, results=True) as console:
        try:
            evaluate(Evaluation(models, config), models, records)
        except KeyboardInterrupt:
            console.print("interrupted")
            return 130
        finally:
            # Also after Ctrl-C or an error: what was measured is shown.
            if records:
                print_tables(records, console)
    return 0


def make_parser() -> ArgumentParser:
    """Returns the parser of the options."""
    parser = ArgumentParser(__doc__, EvaluationConfig, main=())
    parser.add_argument(
        "models", metavar="MODEL_OR_RUN", nargs="+", help="the first is the reference of ratios"
    )
    return parser


def evaluate(evaluation: Evaluation, models: Sequence[str], records: list[Record]) -> None:
    """Appends the records of all models to a list and shows each when it is measured."""
    for model in models:
        for record in evaluation.records(model):
            records.append(record)
            note(line(record))


if __name__ == "__main__":
    run_command(main)
