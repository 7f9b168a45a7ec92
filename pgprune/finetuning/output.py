"""Writes a finetuned model: weights, tokenizer, card, and the record of how it was made."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from pgprune.models.read_config import PRUNED
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
    if "teacher" in record:
        published["teacher"] = public_name(record["teacher"])
    if "validation" in record:
        texts = {name: _public(text) for name, text in record["validation"]["texts"].items()}
        published["validation"] = {**record["validation"], "texts": texts}
    for key in ("data", "evaluation"):
        published[key] = {**record[key], "source": _public(record[key]["source"])}
    return published


def _public(source: str) -> str:
    return public_names(source).replace("`", "")


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
    data, evaluation = record["data"], record["evaluation"]
    sets = list(record["perplexity"]["before"])
    rows = {"before": "before", "blocks by themselves": "local", "this model": "after"}
    table = grid(
        ["perplexity", *map(plain, sets)],
        [
            [label, *(f"{record['perplexity'][when][name]:.2f}" for name in sets)]
            for label, when in rows.items()
            if when in record["perplexity"]
        ],
    )
    windows = ", ".join(
        f"{count:,} of {plain(name)}" for name, count in evaluation["windows"].items()
    )
    done = [_fitted(record), _trained(record)]
    return (
        "What stands above is about the model before it was finetuned. "
        f"{' '.join(filter(None, done))} The text is {public_names(data['source'])} "
        f"({data['kind']}, trained on: {data['train_on']}), seed {record['seed']}.\n\n"
        + table
        + f"\nWindows of {evaluation['sequence_length']:,} tokens ({windows}); BOS: "
        f"{evaluation['bos']}; text: {public_names(evaluation['source'])}. Everything else is in "
        f"`{RECORD_FILE}`.\n"
    )


def _fitted(record: Mapping[str, Any]) -> str:
    """Writes what local distillation did, if anything."""
    if "local" not in record:
        return ""
    blocks = record["local"]["blocks"]
    better = sum(block["after"] < block["before"] for block in blocks)
    return (
        f"Each attention and each MLP was fitted to the states of {_teacher(record)} by itself, on "
        f"{record['local']['windows']:,} windows; {better} of {len(blocks)} became better on "
        "held-out windows, and the others stay."
    )


def _trained(record: Mapping[str, Any]) -> str:
    """Writes how the model was trained as a whole, if it was."""
    if "training" not in record:
        return ""
    training, updates = record["training"], record["updates"]
    what = {
        "lora": "Low-rank adapters of all projections, merged into the weights,",
        "layers": "The weights of the layers",
        "all": "All weights",
    }[training["train"]]
    if lora := record.get("lora"):
        what = f"LoRA of rank {lora['rank']} and alpha {lora['alpha']:g} on all projections"
        what += ", merged into the weights,"
    aim = "the text"
    if taught := record.get("distillation"):
        aim = f"the predictions of {_teacher(record)} at temperature {taught['temperature']:g}"
    sentence = (
        f"{what} ({training['trained_parameters']:,} parameters) learned {aim} in "
        f"{updates['done']:,} updates of {training['batch_size']} windows of "
        f"{record['data']['sequence_length']:,} tokens, AdamW at {training['learning_rate']:g}."
    )
    if updates["done"] < updates["planned"]:
        why = "ended early" if record["completed"] else "was interrupted"
        sentence += f" It {why}, {updates['planned']:,} planned."
    if kept := record.get("kept"):
        sentence += f" The weights are those of update {kept['update']:,}, the best on held-out "
        sentence += "windows of two texts."
    return sentence


def _teacher(record: Mapping[str, Any]) -> str:
    return plain(public_name(record["teacher"]))
