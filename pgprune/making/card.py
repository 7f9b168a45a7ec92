"""Writes the README.md of a make: what was made, how to load it, and the table of stages."""

import re
from pathlib import Path

from pgprune.budget.targets import Target
from pgprune.making.state import State
from pgprune.making.table import RECOVERED, SEARCH, Row, table
from pgprune.runs.model_card import CARD, perplexity_text, public_name, public_names
from pgprune.runs.results_file import read_results
from pgprune.utils.files import read_text, saving, write_file
from pgprune.utils.markdown import grid, plain
from pgprune.utils.progress import duration

_FOLDER = re.compile(r"(?<![\w./~-])/(?:[^\s/=]+/)*")  # of an absolute path
_HEADING = "## How this model was made"
_FOLDERS = {
    SEARCH: "the run of the search: mask, refitted weights, learning curve, pictures",
    RECOVERED: "the model after recovery, with the record of its training",
    "hf": "the model for transformers, with tokenizer and card",
    "gguf": "the model for llama.cpp, Ollama and LM Studio",
    "make.json": "settings, forecast and stages of this directory",
}


def write_cards(path: Path, state: State) -> None:
    """Writes the README.md of the directory, and the table into the cards of what was exported.

    Raises:
        PruningError: the disk is full or refuses.
    """
    section = stages_section(table(path, state), state)
    with saving(path, ", then resume"):
        write_file(path / CARD, _page(path, state, section).encode())
        for name in state.config.formats:
            card = path / name / CARD
            if card.is_file():
                before = read_text(card).partition(_HEADING)[0].rstrip()
                write_file(card, f"{before}\n\n{_HEADING}\n\n{section}".encode())


def stages_section(rows: list[Row], state: State) -> str:
    """Writes the table of stages with what its numbers depend on."""
    head, lines = cells(rows)
    search = state.search
    return (
        grid(head, [[plain(cell) for cell in line] for line in lines])
        + "\nPerplexity (± its standard error over windows) of windows of "
        f"{search.data.sequence_length} tokens of {public_names(search.data.evaluation)}; the "
        f"search and the recovery read {public_names(search.data.calibration)}, seed "
        f"{search.run.seed}. Tokens are all that a stage asked of the model, minutes those of the "
        "clock, evaluation included.\n"
    )


def cells(rows: list[Row]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the lines of the table as texts."""
    texts = list(dict.fromkeys(text for row in rows for text in row.perplexity))
    head = ["after", "parameters", *texts, "tokens", "time"]
    lines = [
        [
            row.name,
            "-" if row.parameters is None else f"{row.parameters:,}",
            *(
                perplexity_text(row.perplexity.get(text), row.errors.get(text))
                if text in row.perplexity
                else "-"
                for text in texts
            ),
            "-" if row.tokens is None else f"{row.tokens:,}",
            "-" if row.seconds is None else duration(row.seconds),
        ]
        for row in rows
    ]
    return head, lines


def _page(path: Path, state: State, section: str) -> str:
    name = plain(public_name(state.search.model.model))
    there = [folder for folder in _FOLDERS if (path / folder).exists()]
    folders = [[f"`{folder}`", _FOLDERS[folder]] for folder in there]
    parts = [
        f"# {name}, made smaller by pgprune",
        section.rstrip("\n"),
        "## What is here",
        grid(["", ""], folders).rstrip("\n"),
        *_targets(path),
        *_loading(path, state),
        "## How to make it again",
        f"```\n{_public(state)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _loading(path: Path, state: State) -> list[str]:
    lines = []
    if (path / "hf").is_dir():
        remote = any((path / "hf").glob("modeling_*.py"))
        option = ", trust_remote_code=True" if remote else ""
        lines.append(f'AutoModelForCausalLM.from_pretrained("hf"{option})  # in Python')
    if (path / "gguf").is_dir():
        lines.append("llama-cli -m gguf/model.gguf")
    return ["Load it from this directory:", "```\n" + "\n".join(lines) + "\n```"] if lines else []


def _targets(path: Path) -> list[str]:
    """Says what the targets were, and what the mask of the search comes to."""
    results = read_results(path / SEARCH) or {}
    lines = [
        [f"`{each['target']}`", Target.parse(each["target"]).said(each["reached"])]
        for each in results.get("targets", ())
    ]
    return ["## Targets", grid(["asked", "reached"], lines).rstrip("\n")] if lines else []


def _public(state: State) -> str:
    """Returns the command without the folders of this machine."""
    return _FOLDER.sub("", state.command)
