"""The language part of a model of text and images: taken out to be pruned, and put back.

Only the language part predicts text, so that it is pruned as any causal LM. What reads images stays
as it is, to the bit.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
)

from pgprune.errors import PruningError
from pgprune.inspection.checkpoint_kind import check_floats
from pgprune.models.load import ModelConfig, check_model
from pgprune.models.read_config import PRUNED
from pgprune.models.source import find_source, unreadable
from pgprune.models.vocabulary import load_tokenizer
from pgprune.models.weight_files import share_weights
from pgprune.utils.files import check_new, new_directory, saving
from pgprune.utils.options import Config, option
from pgprune.utils.progress import bars_as_phases, phase

_OWN = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".py")  # weights, and code
_WRITTEN = ("config.json", "generation_config.json", "model.safetensors.index.json", "README.md")


@dataclass(frozen=True)
class LanguagePartConfig(Config):
    """The language part: what to do with it, and where the result goes."""

    pruned: str | None = option(
        None,
        "export of the pruned language part, which is put back into the model",
        unset="the language part is taken out",
        metavar="DIR",
    )
    output: str | None = option(
        None, "new directory", unset="MODEL-language, or MODEL-pruned", metavar="DIR"
    )
    quiet: bool = option(False, "print only errors")


def take_out(source: str, output: Path) -> int:
    """Writes the language part of a model of text and images as a causal LM.

    Args:
        source: directory or hub id of the model.
        output: new directory.

    Returns:
        The number of its parameters.

    Raises:
        PruningError: the model has no language part, or the directory exists or cannot be written.
    """
    check_new(output)
    place, config = _config(source)
    tokenizer = load_tokenizer(place, config.text_config)
    whole = _load_whole(source, place)
    part: Any = AutoModelForCausalLM.from_config(config.text_config, dtype=whole.dtype)
    (decoder, name), head = _places(whole)
    part.model, part.lm_head = getattr(decoder, name), head.lm_head
    part.config.tie_word_embeddings = part.lm_head.weight is part.model.embed_tokens.weight
    with saving(output), phase(f"writing {output}"), new_directory(output) as directory:
        part.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        share_weights(directory)
    return sum(parameter.numel() for parameter in part.parameters())


def put_back(source: str, pruned: str, output: Path) -> int:
    """Writes a model of text and images with a pruned language part in place of its own.

    Args:
        source: directory or hub id of the model.
        pruned: export of the pruned language part, whose layers are all alike.
        output: new directory.

    Returns:
        The number of parameters.

    Raises:
        PruningError: the model has no language part, the other one does not fit into it, or the
            directory exists or cannot be written.
    """
    check_new(output)
    place, config = _config(source)
    part_config, _ = check_model(ModelConfig(pruned), pruned=True)
    _check_fit(source, config.text_config, pruned, part_config)
    whole, part = _load_whole(source, place), _load(AutoModelForCausalLM, pruned)
    (decoder, name), head = _places(whole)
    setattr(decoder, name, part.model)
    head.lm_head = part.lm_head
    part.config.use_cache = True  # evaluating masks does without
    whole.config.text_config = part.config
    whole.config.tie_word_embeddings = part.config.tie_word_embeddings
    with saving(output), phase(f"writing {output}"), new_directory(output) as directory:
        _copy_files(Path(place), directory)
        whole.save_pretrained(directory)
        share_weights(directory)
    return sum(parameter.numel() for parameter in whole.parameters())


def _config(source: str) -> tuple[str, Any]:
    """Returns where a model of text and images is, and its configuration."""
    place = find_source(source).place
    try:
        raw, _ = PretrainedConfig.get_config_dict(place)
        config: Any = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:  # configuration classes raise errors of many types
        raise PruningError(unreadable(source, "configuration", error)) from error
    check_floats(source, raw)
    known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if not known or not hasattr(config, "text_config"):
        raise PruningError(
            f"the model {source!r} (model_type {config.model_type!r}) is none of text and images "
            "that transformers knows, so it has no language part to take out; prune it as it is"
        )
    return place, config


def _load_whole(source: str, place: str) -> Any:
    """Loads a model of text and images, and makes sure that its language part is in its place."""
    whole = _load(AutoModelForImageTextToText, place)
    (decoder, name), head = _places(whole)
    if not hasattr(decoder, name) or not hasattr(head, "lm_head"):
        raise PruningError(
            f"the language part of the model {source!r} ({type(whole).__name__}) is neither in its "
            "model.language_model and lm_head nor in its language_model; save it as a causal LM "
            "by hand"
        )
    return whole


def _places(whole: Any) -> tuple[tuple[Any, str], Any]:
    """Returns the module and the name in it of the decoder of text, and the module of the head."""
    causal_lm = getattr(whole, "language_model", None)
    if hasattr(causal_lm, "lm_head"):  # of Llama 4
        return (causal_lm, "model"), causal_lm
    return (getattr(whole, "model", None), "language_model"), whole


def _load(loader: Any, place: str) -> Any:
    """Loads a model by an auto class of transformers, in the number format that it has."""
    try:
        with bars_as_phases():
            return loader.from_pretrained(
                place, dtype="auto", use_safetensors=True, trust_remote_code=False
            )
    except Exception as error:  # odd values in a model's files raise errors of all types
        raise PruningError(unreadable(place, "weights", error)) from error


def _check_fit(source: str, own: Any, pruned: str, part: PretrainedConfig) -> None:
    """Refuses a pruned model that is not of the language part, or that no stock class can hold."""
    if part.model_type.startswith(PRUNED):
        raise PruningError(
            f"the layers of {pruned!r} differ, and the model {source!r} can hold equal ones only; "
            "export the run with --uniform, or prune with --scope uniform"
        )
    for name in ("model_type", "hidden_size", "vocab_size"):
        if (here := getattr(part, name)) != (there := getattr(own, name)):
            raise PruningError(
                f"{pruned!r} has {name} {here!r}, and the language part of {source!r} has "
                f"{there!r}; give an export of a run on that part"
            )


def _copy_files(place: Path, directory: Path) -> None:
    """Copies what a processor and a tokenizer need, if the model is in a directory."""
    for file in sorted(place.iterdir()) if place.is_dir() else ():
        if file.is_file() and file.suffix not in _OWN and file.name not in _WRITTEN:
            shutil.copyfile(file, directory / file.name)
