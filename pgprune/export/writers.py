"""Writers of the export formats: each turns a loaded run into the files of a directory."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pgprune.export.gguf import context_length, write_gguf
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.read_config import PRUNED
from pgprune.models.weight_files import share_weights
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.finished import LoadedRun
from pgprune.runs.model_card import base_name, model_card
from pgprune.surgery.architecture import assemble
from pgprune.surgery.generation_settings import savable_generation_config
from pgprune.surgery.layers import zero_pruned
from pgprune.surgery.portable import ghost_channels, portable_layers
from pgprune.utils.files import write_file


def _write_hf(loaded: LoadedRun, directory: Path) -> PreTrainedModel:
    """Writes the physically smaller model, as ``from_pretrained`` reads it."""
    return _save(loaded, loaded.pruned(), "hf", directory)


def write_portable(loaded: LoadedRun, directory: Path) -> PreTrainedModel:
    """Writes the smaller model with attention and an MLP in every layer."""
    units = loaded.units
    channels = ghost_channels(loaded.round_to, units.shapes[0].channels)
    layers = portable_layers(loaded.model, units, loaded.mask, channels, loaded.repair)
    return _save(loaded, assemble(loaded.model, units, layers), "portable", directory)


def _write_masked(loaded: LoadedRun, directory: Path) -> PreTrainedModel:
    """Writes the dense shapes with zeros, for tools that know stock architectures only."""
    model = zero_pruned(loaded.model, loaded.units, loaded.mask)
    model.config.use_cache = True  # evaluating masks does without
    model.generation_config = savable_generation_config(model, model.config)
    # The repair has zeros for pruned inputs, so its weights stay within the mask.
    with repaired(MaskedLM(model, loaded.units), loaded.repair or Repair()):
        return _save(loaded, model, "masked", directory)


def write_llama_cpp(
    loaded: LoadedRun, directory: Path, vocabulary: dict[str, Any] | None = None
) -> None:
    """Writes one file for llama.cpp, Ollama and LM Studio.

    Args:
        loaded: the run.
        directory: to write to.
        vocabulary: the tokenizer as ``read_vocabulary`` returns it; None takes the model's own.
    """
    parameters = write_gguf(loaded, directory / "model.gguf", vocabulary)
    notes = (*loaded.notes, *_ghosts(loaded, parameters), *window(loaded))
    card = model_card(loaded.run, "gguf", False, parameters, notes)
    write_file(directory / "README.md", card.encode())


WRITERS: dict[str, Callable[[LoadedRun, Path], object]] = {
    "hf": _write_hf,
    "masked": _write_masked,
    "gguf": write_llama_cpp,
}
"""What writes each format."""


def _save(loaded: LoadedRun, model: PreTrainedModel, kind: str, directory: Path) -> PreTrainedModel:
    """Writes a model with all that belongs to it."""
    base = base_name(loaded.run)
    provenance = dict(getattr(model.config, "pgprune", {}), base_model=base, format=kind)
    model.config.pgprune = provenance
    model.save_pretrained(directory)
    loaded.tokenizer.save_pretrained(directory)
    # Layers of different sizes need code beside the weights, equal ones do not.
    remote = model.config.model_type.startswith(PRUNED)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    notes = (*loaded.notes, *_differences(loaded, model, kind, parameters))
    card = model_card(loaded.run, kind, remote, parameters, notes)
    write_file(directory / "README.md", card.encode())
    share_weights(directory)
    return model


def _differences(
    loaded: LoadedRun, model: PreTrainedModel, kind: str, parameters: int
) -> Iterator[str]:
    """Yields sentences for the card on what may surprise a user of the model."""
    if kind == "portable":
        yield from _ghosts(loaded, parameters)
    # Width over heads is what programs take for the size of a head unless told otherwise.
    config, heads = model.config, getattr(model.config, "num_attention_heads", 0)
    if (
        not config.model_type.startswith(PRUNED)
        and not config.is_heterogeneous  # the dense model's configuration has several sizes
        and getattr(config, "head_dim", None) not in (None, config.hidden_size // heads)
        and not hasattr(type(config)(), "head_dim")
    ):
        yield (
            f"The size of a head, {config.head_dim}, is an entry of config.json that transformers "
            f"reads but that is not part of stock `{config.model_type}` configurations. Programs "
            "that ignore it cannot load this model; for vLLM choose `--model-impl transformers`."
        )
    family, saved = loaded.model.config.model_type, model.config.model_type
    if saved != family and not saved.startswith(PRUNED):
        yield (
            f"Saved as the architecture `{saved}`, which here is the same network as `{family}` "
            "but takes any number of heads."
        )


def _ghosts(loaded: LoadedRun, parameters: int) -> Iterator[str]:
    """Says what portable layers have more than the mask has left."""
    counted = int(loaded.run.results["parameters"]["pruned"])
    if parameters != counted:
        yield (
            f"Portable: no layer lacks attention or MLP, so this file holds {parameters:,} "
            f"parameters instead of {counted:,}. What was missing comes as zeros: a kv group, "
            "value dimensions or a few channels. Zeros change no logits; layers that did nothing "
            "are left out."
        )


def window(loaded: LoadedRun) -> Iterator[str]:
    """Says in at most one sentence that a GGUF file is for shorter texts than the model."""
    config = loaded.model.config
    length = context_length(config)
    if length < config.max_position_embeddings:
        yield (
            f"This file is for texts of up to {length:,} tokens: the model's attention reaches "
            "back no further, but in llama.cpp it would."
        )
