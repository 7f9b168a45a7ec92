"""Export: a run's mask as a directory that ordinary tools load.

``hf`` is the physically smaller model, ``masked`` the dense shapes with zeros in them, ``gguf`` one
file for llama.cpp. Each writer of ``FORMATS`` turns a loaded run into files of a directory; the
directory appears by one rename, complete, or not at all.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.architecture import assemble
from pgprune.errors import PruningError
from pgprune.files import check_new, new_directory, saving, write_file
from pgprune.gguf import check_gguf, context_length, write_gguf
from pgprune.gguf_files import gguf_parameters, load_gguf, read_vocabulary
from pgprune.model_card import model_card
from pgprune.models import DTYPES, PRUNED
from pgprune.portable import ghost_channels, portable_layers
from pgprune.rerounding import rounded_again
from pgprune.run import Run
from pgprune.source import Source, load_source
from pgprune.surgery import zero_pruned
from pgprune.text import first_line


def _write_hf(source: Source, directory: Path) -> PreTrainedModel:
    """The physically smaller model, as ``from_pretrained`` reads it."""
    return _save(source, source.pruned(), "hf", directory)


def _write_portable(source: Source, directory: Path) -> PreTrainedModel:
    """The same with attention and an MLP in every layer."""
    units = source.units
    channels = ghost_channels(source.round_to, units.shapes[0].channels)
    layers = portable_layers(source.model, units, source.mask, channels)
    return _save(source, assemble(source.model, units, layers), "portable", directory)


def _write_masked(source: Source, directory: Path) -> PreTrainedModel:
    """The dense shapes with zeros, for tools that know nothing."""
    model = zero_pruned(source.model, source.units, source.mask)
    model.config.use_cache = True  # evaluating masks does without
    return _save(source, model, "masked", directory)


def _write_gguf(source: Source, directory: Path, vocabulary: dict[str, Any] | None = None) -> None:
    """One file for llama.cpp, Ollama and LM Studio."""
    name = public_name(source.sections["model"]["model"])
    parameters = write_gguf(source, directory / "model.gguf", name, vocabulary)
    notes = (*source.notes, *_ghosts(source, parameters), *_window(source))
    card = model_card(name, "gguf", False, parameters, source.results, source.sections, notes)
    write_file(directory / "README.md", card.encode())


FORMATS: dict[str, Callable[[Source, Path], object]] = {
    "hf": _write_hf,
    "masked": _write_masked,
    "gguf": _write_gguf,
}
"""What writes each format."""


@dataclass(frozen=True)
class ExportConfig:
    """Export: in which form, and to where."""

    format: str = field(
        default="hf",
        metadata={
            "help": "hf: a smaller Hugging Face model; masked: the dense shapes with zeros; gguf: "
            "a file for llama.cpp, Ollama and LM Studio (not opt; qwen3 with --uniform)",
            "choices": list(FORMATS),
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "the new directory", "default": "the format's name, in the run"},
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "number format of the weights; auto is the run's, or where that is auto too, "
            "the checkpoint's own",
            "choices": ["auto", *DTYPES],
        },
    )
    uniform: bool = field(
        default=False,
        metadata={
            "help": "all layers keep equally many heads and equally many channels, so that the "
            "stock architecture and every server load the result; a mask that was not searched "
            "with --scope uniform is rounded again, and evaluated"
        },
    )
    round_to: int | None = field(
        default=None,
        metadata={
            "help": "what the number of channels that a layer keeps is a multiple of, as 8 to 128; "
            "the mask is rounded again, and evaluated, where it is not",
            "minimum": 1,
            "default": "the run's own",
        },
    )
    portable: bool = field(
        default=False,
        metadata={
            "help": "no layer lacks attention or MLP, as the Transformers backends of vLLM and "
            "SGLang insist: layers are merged where that is exact, and what is still missing "
            "becomes a few zeros"
        },
    )
    vocab_gguf: str | None = field(
        default=None,
        metadata={
            "help": "for --format gguf: any GGUF file of the dense model, to copy its vocabulary",
            "default": "the model's tokenizer is written, where llama.cpp knows its kind",
        },
    )


def export(run: Run, config: ExportConfig, note: Callable[[str], object] = lambda _: None) -> Path:
    """Writes the model that a run has pruned.

    Args:
        run: a run with results.
        config: format and directory.
        note: is told how the exported mask differs from the learned one, if it does.

    Returns:
        The new directory.

    Raises:
        PruningError: the directory exists or cannot be made; the run has no results; its mask or
            the model's files are damaged, or they do not belong together; the mask cannot be as
            uniform or as portable as asked; GGUF cannot hold the model or its tokenizer.
    """
    output = Path(config.output) if config.output is not None else run.path / config.format
    check_new(output)
    vocabulary = _vocabulary(config)
    write = _writer(config, vocabulary)
    source = load_source(run)
    if source.slices is not None:
        _check_sliced(run, config)
    if config.format == "gguf":
        check_gguf(source.model, source.tokenizer, vocabulary)
        for sentence in _window(source):
            note(sentence)
    if config.uniform or config.round_to is not None:
        source = rounded_again(run, source, config.uniform, config.round_to or source.round_to)
        for sentence in source.notes:
            note(sentence)
    if config.dtype != "auto":
        source.model.to(DTYPES[config.dtype])  # type: ignore[arg-type]
    try:
        remedy = "free some space or choose another --output"
        with saving(output, remedy), new_directory(output) as directory:
            write(source, directory)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise PruningError(f"cannot write {output}: {first_line(error)}; {remedy}") from error
    return output


def check_format(format: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks, before a run begins, that what it prunes can be exported with default options.

    Args:
        format: a key of ``FORMATS``.
        model: the dense model.
        tokenizer: of the model.

    Raises:
        PruningError: a package is missing, or GGUF cannot hold the model or its tokenizer.
    """
    if format == "gguf":
        check_gguf(model, tokenizer)


def parameters_in(directory: Path) -> int:
    """Parameters in the files of an exported directory."""
    count = sum(map(gguf_parameters, directory.glob("*.gguf")))
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        count += sum(math.prod(shape) for shape in shapes)
    return count


def _vocabulary(config: ExportConfig) -> dict[str, Any] | None:
    """The vocabulary that a GGUF file lends, if one does."""
    if config.format == "gguf":
        load_gguf()  # says what to install
    elif config.vocab_gguf is not None:
        raise PruningError(
            f"--vocab-gguf is for --format gguf; format {config.format} takes the tokenizer as it "
            "is; leave it out"
        )
    return read_vocabulary(Path(config.vocab_gguf)) if config.vocab_gguf is not None else None


def _writer(
    config: ExportConfig, vocabulary: dict[str, Any] | None
) -> Callable[[Source, Path], object]:
    if not config.portable:
        write = FORMATS[config.format]
        return write if vocabulary is None else partial(_write_gguf, vocabulary=vocabulary)
    if config.format != "hf":
        raise PruningError(
            f"--portable is for --format hf, as no layer of format {config.format} lacks a block; "
            "leave it out"
        )
    return _write_portable


def _check_sliced(run: Run, config: ExportConfig) -> None:
    """Refuses what a narrower residual stream cannot be."""
    if config.format != "hf" or config.portable or config.uniform or config.round_to is not None:
        raise PruningError(
            f"{run.path} has sliced the residual stream, which only --format hf can hold, without "
            "--portable, --uniform and --round-to"
        )


def _save(source: Source, model: PreTrainedModel, kind: str, directory: Path) -> PreTrainedModel:
    """Writes a model with all that belongs to it."""
    name = public_name(source.sections["model"]["model"])
    provenance = dict(getattr(model.config, "pgprune", {}), base_model=name, format=kind)
    model.config.pgprune = provenance
    model.save_pretrained(directory)
    source.tokenizer.save_pretrained(directory)
    remote = model.config.model_type.startswith(PRUNED)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    notes = (*source.notes, *_differences(source, model, kind, parameters))
    card = model_card(name, kind, remote, parameters, source.results, source.sections, notes)
    write_file(directory / "README.md", card.encode())
    for file in directory.glob("*.safetensors"):  # which safetensors lets nobody else read
        file.chmod(0o644)
    return model


def _differences(
    source: Source, model: PreTrainedModel, kind: str, parameters: int
) -> Iterator[str]:
    """What a user of the model might stumble over, in sentences for its card."""
    if kind == "portable":
        yield from _ghosts(source, parameters)
    config, heads = model.config, getattr(model.config, "num_attention_heads", 0)
    if (
        not config.model_type.startswith(PRUNED)
        and getattr(config, "head_dim", None) not in (None, config.hidden_size // heads)
        and not hasattr(type(config)(), "head_dim")
    ):
        yield (
            f"The size of a head, {config.head_dim}, is an entry of config.json that transformers "
            f"reads but that is not part of stock `{config.model_type}` configurations. Programs "
            "that ignore it cannot load this model; for vLLM choose `--model-impl transformers`."
        )
    family, saved = source.model.config.model_type, model.config.model_type
    if saved != family and not saved.startswith(PRUNED):
        yield (
            f"Saved as the architecture `{saved}`, which here is the same network as `{family}` "
            "but takes any number of heads."
        )


def _ghosts(source: Source, parameters: int) -> Iterator[str]:
    """Says what portable layers have more than the mask has left."""
    counted = int(source.results["parameters"]["pruned"])
    if parameters != counted:
        yield (
            f"Portable: no layer lacks attention or MLP, so this file holds {parameters:,} "
            f"parameters instead of {counted:,}. What was missing is a kv group or a few channels "
            "of zeros, which change no logits; layers that did nothing are left out."
        )


def _window(source: Source) -> Iterator[str]:
    """Says that a GGUF file is for shorter texts than the model, if it is."""
    config = source.model.config
    length = context_length(config)
    if length < config.max_position_embeddings:
        yield (
            f"This file is for texts of up to {length:,} tokens: the model's attention reaches "
            "back no further, but in llama.cpp it would."
        )


def public_name(model: str) -> str:
    """A model's name without the folders that it lies in on this machine."""
    if model == "builtin":
        return "pgprune's built-in model"
    return Path(model).expanduser().resolve().name if Path(model).is_dir() else model
