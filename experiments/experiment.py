"""A command that measures cells and makes tables: options, rounds of cells, report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers.utils import logging

from pgprune.data.stream import DataConfig
from pgprune.errors import PruningError, first_line, printable
from pgprune.experiments.cells import Cell, CellsConfig
from pgprune.experiments.records import odd_line
from pgprune.experiments.runner import failures, run
from pgprune.utils.command_line import ArgumentParser, from_arguments, given
from pgprune.utils.markdown import check_page
from pgprune.utils.options import Config
from pgprune.utils.progress import phase
from pgprune.utils.progress_view import showing

_FIRST = ("seeds", "total_timesteps", "timesteps", "calibration", "evaluation", "output")


def _no_text(compared: Any) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Experiment:
    """A command.

    Attributes:
        description: shown above its options.
        compared: options that say what is compared.
        config: options that say how it is measured and shown.
        rounds: makes the cells from both; a later round may follow from the records of earlier.
        report: makes the tables and plots; returns what to print.
        text: default options for the text by field, from what is compared.
    """

    description: str | None
    compared: type[Config]
    config: type[CellsConfig]
    rounds: Callable[[Any, Any], Iterable[Sequence[Cell]]]
    report: Callable[[Any], str]
    text: Callable[[Any], Mapping[str, Any]] = _no_text

    def make_parser(self) -> ArgumentParser:
        """Returns the parser of the options, with what is compared first."""
        first = (*(field.name for field in fields(self.compared)), *_FIRST)
        configs = (self.compared, self.config, DataConfig)
        return ArgumentParser(self.description, *configs, main=first)

    def main(self, words: Sequence[str] | None = None, workers: int | None = None) -> int:
        """Measures what is missing, then writes the tables and plots.

        Args:
            words: the options; None takes those of the command line.
            workers: processes at a time; 0 measures in this process, None asks the options.

        Returns:
            The exit status: 1 if cells ended unexpectedly or, of agents, have an error. That a
            method refuses a cell is a result of a comparison.

        Raises:
            PruningError: anything that cannot work, before any long work.
        """
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        arguments = self.make_parser().parse_args(words)
        compared = from_arguments(self.compared, arguments)
        config = from_arguments(self.config, arguments)
        # A wrong page is reported before hours of work, not after them.
        if config.into is not None:
            check_page(Path(config.into), config.marker)
        failed = 0
        with showing(config.quiet):
            if not config.report:
                # What was typed wins over what the experiment proposes.
                text = {**self.text(compared), **given(DataConfig, arguments)}
                for cells in self.rounds(compared, config):
                    failed = run(cells, config, DataConfig(**text), text, workers)
                    failed += failures(cells, config) if config.kind == "agent" else 0
                    if failed:
                        break  # the next round may need what is missing
            with phase("tables and plots"):
                said = self._reported(config)
        print(printable(said, kept="\n"))
        return 1 if failed else 0

    def _reported(self, config: CellsConfig) -> str:
        """Makes the tables and plots of records that may be of any origin."""
        where = odd_line(config.records)
        try:
            if not where:
                return self.report(config)
        except PruningError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            lacking = error.args[0] if isinstance(error, KeyError) else None
            where = odd_line(config.records, lacking) or first_line(error)
        raise PruningError(
            f"{config.records} has a line that no table can show ({where}); remove it and measure "
            "its cell again"
        )
