"""Reports of experiments: where the tables go, and the list of what could not be measured."""

from collections.abc import Iterable
from pathlib import Path

from pgprune.experiments.cells import CellsConfig
from pgprune.utils.files import saving, write_file
from pgprune.utils.jsonl import Record
from pgprune.utils.markdown import plain, renew_page


def page_of(config: CellsConfig) -> Path:
    """Returns the page that gets the tables: ``--into``, or a file in the output directory."""
    return Path(config.into or Path(config.output) / f"{config.file}.md")


def publish(text: str, config: CellsConfig) -> str:
    """Writes the tables into their page.

    Args:
        text: the tables, under a first line that sums them up.
        config: says where the tables go.

    Returns:
        What to print: the tables, or where they are in a page, their first line.

    Raises:
        PruningError: the page cannot be written.
    """
    page = page_of(config)
    with saving(page, " and repeat the command with --report"):
        # A page of --into exists already, which the command has checked at its start.
        if config.into is None:
            page.parent.mkdir(parents=True, exist_ok=True)
            write_file(page, text.encode())
            return text
        renew_page(page, config.marker, text)
    return text.partition("\n")[0]


def failures_list(records: Iterable[Record]) -> str:
    """Returns what could not be measured and why, as a Markdown list under a line, or nothing."""
    seeds = dict[str, list[str]]()
    for record in records:
        if "error" in record:
            repair = "" if record["repair"] == "none" else f", {record['repair']}"
            # Seeds that fail alike are one line.
            what = f"{record['method']}{repair} on {record['task']}: {record['error']}"
            line = plain(what.replace("\n", " "))  # an error may have several
            seeds.setdefault(line, []).append(str(record["seed"]))
    lines = [f"- {line} (seed {', '.join(found)})\n" for line, found in seeds.items()]
    return "Not measured:\n\n" + "".join(lines) if lines else ""
