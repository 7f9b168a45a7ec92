"""Exports a run's mask as a directory that ordinary tools load.

``hf`` is the physically smaller model, ``masked`` the dense shapes with zeros in them, ``gguf`` one
file for llama.cpp. What is shipped is the run's mask with its repair, unless another one is asked
for. The directory appears by one rename, complete, or not at all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pgprune.errors import PruningError
from pgprune.export.gguf import check_gguf, check_scope, holds_biases
from pgprune.export.put_back import with_weights
from pgprune.export.reround import reround
from pgprune.export.reship import reship
from pgprune.export.writers import WRITERS, window, write_llama_cpp, write_portable
from pgprune.inspection.gguf_files import gguf_parameters, load_gguf, read_vocabulary
from pgprune.masking.masked_lm import MaskedLM
from pgprune.models.load import DTYPES, ModelConfig
from pgprune.repair.config import adds_biases
from pgprune.repair.fit import REPAIRS
from pgprune.runs.finished import FinishedRun, LoadedRun
from pgprune.runs.model_card import CARD
from pgprune.runs.settings import FORMATS
from pgprune.utils.files import check_new, new_directory, saving
from pgprune.utils.manifest import Manifest, files_below
from pgprune.utils.options import Config, option
from pgprune.utils.progress import note, phase


@dataclass(frozen=True)
class ExportConfig(Config):
    """Export: in which form, and to where."""

    format: str = option(
        "hf",
        "smaller Hugging Face model, dense shapes with zeros, or llama.cpp file",
        choices=list(FORMATS),
    )
    output: str | None = option(
        None, "new directory", unset="the format's name, in the run", metavar="DIR"
    )
    dtype: str = option(
        "auto", "number format of the weights; auto is the run's", choices=["auto", *DTYPES]
    )
    uniform: bool = option(
        False, "equal layers: a stock architecture; rounds and evaluates the mask again"
    )
    round_to: int | None = option(
        None,
        "round kept channels per layer to a multiple of this, and evaluate again",
        minimum=1,
        unset="the run's own",
    )
    portable: bool = option(False, "leave no layer without attention or MLP, for vLLM and SGLang")
    repair: str = option(
        "auto",
        "repair of kept weights: the run's own (auto), none, or a new one",
        choices=["auto", "none", *REPAIRS],
    )
    repair_damping: float | str | None = option(
        None,
        "new repair: damping relative to an input's mean square, or auto (held out)",
        minimum=0,
        words=("auto",),
        unset="the run's own",
    )
    repair_samples: int | None = option(
        None, "new repair: calibration windows", minimum=1, unset="the run's own"
    )
    vocab_gguf: str | None = option(
        None,
        "--format gguf: GGUF file of the dense model to copy the vocabulary from",
        unset="write the model's tokenizer",
        metavar="FILE",
    )
    weights: str | None = option(
        None,
        "take the weights of the run's finetuned model, in any format",
        unset="the run's own",
        metavar="DIR",
    )
    quiet: bool = option(False, "print only errors")


def export(run: FinishedRun, config: ExportConfig) -> Path:
    """Writes the model that a run has pruned; returns the new directory.

    It notes how what is exported differs from what the run has measured, if it does.

    Args:
        run: the run.
        config: format and directory.

    Raises:
        PruningError: the directory exists or cannot be made; the run has no results; its mask or
            the model's files are damaged, or they do not belong together; the mask cannot be as
            uniform or as portable as asked; the format cannot hold the model, its tokenizer or
            its repair; the repair cannot be made.
    """
    # Everything that can be refused without reading weights comes first.
    output = Path(config.output) if config.output is not None else run.path / config.format
    check_new(output)
    vocabulary = _vocabulary(run, config)
    write = _writer(config, vocabulary)
    _check_weights(config)
    loaded = run.load()
    if loaded.slices is not None:
        _check_sliced(run, config)
    if config.format == "gguf":
        check_gguf(loaded.model, loaded.tokenizer, vocabulary)
        for sentence in window(loaded):
            note(sentence)
    _check_repair(config, loaded)
    known = len(loaded.notes)  # which the run has told already
    if config.weights is not None:
        loaded = with_weights(loaded, config.weights)
    if config.uniform or config.round_to is not None:
        loaded = reround(loaded, config.uniform, config.round_to or loaded.round_to)
    loaded = reship(loaded, config.repair, config.repair_damping, config.repair_samples)
    for sentence in loaded.notes[known:]:
        note(sentence)
    # Last: a repair is computed and evaluated in the number format of the run.
    if config.dtype != "auto":
        loaded.model.to(DTYPES[config.dtype])  # type: ignore[arg-type]
    remedy = " or choose another --output"
    # A new directory appears complete or not at all, also where the disk is full.
    with saving(output, remedy), new_directory(output) as directory, phase(f"writing {output}"):
        write(loaded, directory)
        Manifest.write(directory, files_below(directory, without=[CARD]))
    return output


def check_format(
    format: str,
    lm: MaskedLM,
    tokenizer: PreTrainedTokenizerBase,
    repair: str = "auto",
    scope: str = "global",
    model: ModelConfig | None = None,
) -> None:
    """Checks, before a run begins, that what it prunes can be exported with default options.

    Args:
        format: a key of ``FORMATS``.
        lm: the dense model.
        tokenizer: of the model.
        repair: a choice of ``RepairConfig``.
        scope: of the run's budget.
        model: where it was read from; a GGUF file lends its vocabulary.

    Raises:
        PruningError: a package is missing, or the format cannot hold the model, its tokenizer, its
            repair or layers that differ.
    """
    if format == "gguf":
        load_gguf()  # says what to install
        lender = None if model is None else model.source().gguf_path
        vocabulary = None if lender is None else read_vocabulary(lender)
        check_gguf(lm.model, tokenizer, vocabulary)  # type: ignore[arg-type]
        check_scope(lm.model.config, lm.units.granularity, scope)  # type: ignore[arg-type]
    # A repair of the run adds biases where the family has none; not all formats hold them.
    if adds_biases(lm.model, lm.units, repair):
        _check_biases(format, False, lm.model.config)  # type: ignore[arg-type]


def parameters_in(directory: Path) -> int:
    """Counts the parameters in the files of an exported directory."""
    count = sum(map(gguf_parameters, directory.glob("*.gguf")))
    for path in directory.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        # Shapes are in the header of the file: no weight is read.
        count += sum(math.prod(shape) for shape in shapes)
    return count


def _vocabulary(run: FinishedRun, config: ExportConfig) -> dict[str, Any] | None:
    """Reads the vocabulary that a GGUF file lends: the one asked for, or the dense model itself."""
    lender = None if config.vocab_gguf is None else Path(config.vocab_gguf)
    if config.format == "gguf":
        load_gguf()  # says what to install
        lender = lender or run.config("model", ModelConfig).source().gguf_path
    elif lender is not None:
        raise PruningError(
            f"--vocab-gguf is for --format gguf; format {config.format} takes the tokenizer as it "
            "is; leave it out"
        )
    return None if lender is None else read_vocabulary(lender)


def _writer(
    config: ExportConfig, vocabulary: dict[str, Any] | None
) -> Callable[[LoadedRun, Path], object]:
    if not config.portable:
        write = WRITERS[config.format]
        return write if vocabulary is None else partial(write_llama_cpp, vocabulary=vocabulary)
    if config.format != "hf":
        raise PruningError(
            f"--portable is for --format hf, as no layer of format {config.format} lacks a block; "
            "leave it out"
        )
    return write_portable


def _check_sliced(run: FinishedRun, config: ExportConfig) -> None:
    """Refuses options that do not fit a narrower residual stream."""
    if config.repair not in ("auto", "none"):
        raise PruningError(
            f"--repair {config.repair} is about pruned units, but {run.path} has sliced the "
            "residual stream; leave it out"
        )
    if config.format != "hf" or config.portable or config.uniform or config.round_to is not None:
        raise PruningError(
            f"{run.path} has sliced the residual stream, which only --format hf can hold, without "
            "--portable, --uniform and --round-to"
        )


def _check_weights(config: ExportConfig) -> None:
    """Refuses options that would change the weights of a finetuned model once more."""
    changed = config.uniform or config.round_to is not None or config.repair != "auto"
    if config.weights is not None and changed:
        raise PruningError(
            f"--weights {config.weights} keeps the run's mask and has weights of its own, which "
            "--uniform, --round-to and --repair would change; leave these out"
        )


def _check_repair(config: ExportConfig, loaded: LoadedRun) -> None:
    """Refuses a repair that the format cannot hold, before it is made."""
    for name in ("damping", "samples"):
        if config.repair == "auto" and getattr(config, f"repair_{name}") is not None:
            raise PruningError(
                f"--repair-{name} is for a repair that is made now, but --repair auto takes the "
                "run's own; choose --repair least-squares or alternating, or leave it out"
            )
    if adds_biases(loaded.model, loaded.units, config.repair, loaded.repair):
        _check_biases(config.format, config.uniform, loaded.model.config)


def _check_biases(format: str, uniform: bool, dense: PretrainedConfig) -> None:
    """Refuses biases that the dense model lacks where there is no place for them."""
    if uniform:
        place = "the stock architecture that --uniform writes"
    elif format == "masked":
        place = "the stock architecture that --format masked writes"
    elif format == "gguf" and not holds_biases(dense):
        place = "llama.cpp's architecture of this family"
    else:
        return
    raise PruningError(
        f"the bias repair adds biases to output and down projections, for which {place} has no "
        "place; use --repair least-squares"
    )
