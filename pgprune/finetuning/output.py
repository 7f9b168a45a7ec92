"""Writes a finetuned model: weights, tokenizer, card, and the record of how it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from pgprune.models.load import PRUNED
from pgprune.models.weight_files import share_weights
from pgprune.runs.any_model import LoadedModel
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.model_card import CARD, base_name, model_card, public_name, public_names
from pgprune.surgery.generation_settings import savable_generation_config
from pgprune.utils.files import new_directory, saving, user_path, write_file
from pgprune.utils.jsonl import add_line, finite
from pgprune.utils.manifest import Manifest, files_below
from pgprune.utils.markdown import grid, plain

RECORD_FILE = "finetuning.json"
"""The file of the new directory that holds the record."""

_HEADING = "## Recovery by finetuning"


def write_finetuned(
    output: Path, loaded: LoadedModel, model: PreTrainedModel, record: Mapping[str, Any]
) -> None:
    """Writes a new directory that ``from_pretrained`` loads, complete or not at all.

    Raises:
        PruningError: the directory exists by now, or the disk is full or refuses.
    """
    provenance = dict(getattr(model.config, "pgprune", None) or {}, finetuned=True)
    if loaded.run is not None:
        # The model was cut out of the run in memory, so nothing else says what it is.
        provenance |= {"base_model": base_name(loaded.run), "format": "hf"}
    model.config.pgprune = provenance
    # transformers refuses to save settings that it would only warn of when it loads them.
    model.generation_config = savable_generation_config(model, model.config)
    text = json.dumps(finite(_published(loaded, record)), indent=2, allow_nan=False) + "\n"
    remedy = " or choose another --output"
    with saving(output, remedy), new_directory(output) as directory:
        model.save_pretrained(directory)
        loaded.tokenizer.save_pretrained(directory)
        write_file(directory / "README.md", finetuned_card(loaded, record).encode())
        write_file(directory / RECORD_FILE, text.encode())
        share_weights(directory)
        Manifest.write(directory, files_below(directory, without=[CARD]))


def add_to_run(run: FinishedRun | None, record: Mapping[str, Any]) -> None:
    """Adds the record to the evaluations of the run that the model came from, if any.

    Raises:
        PruningError: the disk is full or refuses.
    """
    if run is not None:
        remedy = "; the finetuned model is complete"
        add_line(run.path / RunFile.EVALUATIONS, record, remedy)


def finetuned_card(loaded: LoadedModel, record: Mapping[str, Any]) -> str:
    """Writes the card of the model that was finetuned, with a section on finetuning."""
    return f"{_card(loaded).rstrip()}\n\n{_HEADING}\n\n{_section(record)}"


def _published(loaded: LoadedModel, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the record without the folders of this machine."""
    published = {**record, "model": loaded.name}
    # A published model names no folder of the machine that made it.
    del published["output"]
    for key in ("data", "evaluation"):
        source = public_names(record[key]["source"]).replace("`", "")
        published[key] = {**record[key], "source": source}
    return published


def _card(loaded: LoadedModel) -> str:
    """Returns the card of the model before: the one beside its weights, or a new one."""
    readme = user_path(loaded.source) / "README.md"
    if loaded.run is not None:
        remote = loaded.model.config.model_type.startswith(PRUNED)
        return model_card(loaded.run, "hf", remote, loaded.parameters)
    if readme.is_file():
        return readme.read_text(encoding="utf-8", errors="replace")
    name = public_name(loaded.source)
    metadata: dict[str, Any] = {"library_name": "transformers", "tags": ["pgprune"]}
    if name.count("/") == 1:  # a hub id
        metadata["base_model"] = name
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n# {plain(name)}, finetuned\n"


def _section(record: Mapping[str, Any]) -> str:
    """Writes what was done and what came of it."""
    data, lora, evaluation = record["data"], record["lora"], record["evaluation"]
    sets = list(record["perplexity"]["before"])
    rows = {"before": "before", "this model": "after"}
    table = grid(
        ["perplexity", *map(plain, sets)],
        [
            [label, *(f"{record['perplexity'][when][name]:.2f}" for name in sets)]
            for label, when in rows.items()
        ],
    )
    windows = ", ".join(
        f"{count:,} of {plain(name)}" for name, count in evaluation["windows"].items()
    )
    updates = record["updates"]
    ended = "" if record["completed"] else f" It was interrupted, {updates['planned']:,} planned."
    return (
        "What stands above is about the model before it was finetuned: LoRA of rank "
        f"{lora['rank']} and alpha {lora['alpha']:g} on all projections "
        f"({lora['trained_parameters']:,} parameters), merged into the weights, in "
        f"{updates['done']:,} updates of {lora['batch_size']} windows of "
        f"{data['sequence_length']:,} tokens from {data['windows']:,} of "
        f"{public_names(data['source'])} ({data['kind']}, trained on: {data['train_on']}), AdamW "
        f"at {lora['learning_rate']:g}, seed {record['seed']}.{ended}\n\n"
        + table
        + f"\nWindows of {evaluation['sequence_length']:,} tokens ({windows}); BOS: "
        f"{evaluation['bos']}; text: {public_names(evaluation['source'])}. Everything else is in "
        f"`{RECORD_FILE}`.\n"
    )
