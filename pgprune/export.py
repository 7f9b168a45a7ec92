"""Export: a run's mask as a directory that ordinary tools load.

``hf`` is the physically smaller model, ``masked`` the dense shapes with zeros in them. Each writer
of ``FORMATS`` turns a loaded run into files of a directory; the directory appears by one rename,
complete, or not at all.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune.errors import PruningError
from pgprune.files import new_directory, saving, write_file
from pgprune.model_card import model_card
from pgprune.models import DTYPES, ModelConfig, fingerprint, load_model
from pgprune.run import Run
from pgprune.surgery import prune, zero_pruned
from pgprune.text import first_line
from pgprune.units import PruningUnits

_HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class LearnedMask:
    """A run's mask and what it says of itself.

    Attributes:
        mask: (n,) uint8, 1 keeps.
        granularity: of its units.
        channel_block: channels of one unit.
        parameters: of all its units together.
    """

    mask: Tensor
    granularity: str
    channel_block: int
    parameters: int


@dataclass(frozen=True)
class Source:
    """A finished run, loaded: everything that a format needs.

    Attributes:
        model: the dense model, on the CPU; a writer may change it.
        tokenizer: of the model.
        units: of the model, as the mask counts them.
        mask: (n,) uint8, 1 keeps.
        results: the content of results.json.
        sections: of config.yaml.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    units: PruningUnits
    mask: Tensor
    results: dict[str, Any]
    sections: dict[str, dict[str, Any]]


def _write_hf(source: Source, directory: Path) -> PreTrainedModel:
    """The physically smaller model, as ``from_pretrained`` reads it."""
    return _save(source, prune(source.model, source.units, source.mask), "hf", directory)


def _write_masked(source: Source, directory: Path) -> PreTrainedModel:
    """The dense shapes with zeros, for tools that know nothing."""
    model = zero_pruned(source.model, source.units, source.mask)
    model.config.use_cache = True  # evaluating masks does without
    return _save(source, model, "masked", directory)


FORMATS: dict[str, Callable[[Source, Path], PreTrainedModel]] = {
    "hf": _write_hf,
    "masked": _write_masked,
}
"""What writes each format."""


@dataclass(frozen=True)
class ExportConfig:
    """Export: in which form, and to where."""

    format: str = field(
        default="hf",
        metadata={
            "help": "hf: a smaller Hugging Face model; masked: the dense shapes with zeros",
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


def export(run: Run, config: ExportConfig) -> Path:
    """Writes the model that a run has pruned.

    Args:
        run: a run with results.
        config: format and directory.

    Returns:
        The new directory.

    Raises:
        PruningError: the directory exists or cannot be made; the run has no results; its mask or
            the model's files are damaged, or they do not belong together.
    """
    output = Path(config.output) if config.output is not None else run.path / config.format
    check_new(output)
    source = load_source(run)
    if config.dtype != "auto":
        source.model.to(DTYPES[config.dtype])  # type: ignore[arg-type]
    try:
        remedy = "free some space or choose another --output"
        with saving(output, remedy), new_directory(output) as directory:
            FORMATS[config.format](source, directory)
    except SafetensorError as error:  # how safetensors reports a full disk
        raise PruningError(f"cannot write {output}: {first_line(error)}; {remedy}") from error
    return output


def check_new(output: Path) -> None:
    """Checks, before any long work, that a directory can be made.

    Raises:
        PruningError: it exists, or nothing may be written where it should be.
    """
    if os.path.lexists(output):
        raise PruningError(f"{output} exists; choose another --output")
    place = output.absolute().parent
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise PruningError(f"cannot make a directory in {place}; choose another --output")


def load_source(run: Run) -> Source:
    """Loads what a run was about and what came out of it.

    Args:
        run: a run with results.

    Raises:
        PruningError: as ``export``.
    """
    results = _read_results(run)
    learned = read_mask(run.path / "mask.safetensors")
    model_config = run.config("model", ModelConfig)
    model, tokenizer = load_model(
        replace(model_config, device="cpu", device_map=None, dtype=_dtype(model_config))
    )
    units = PruningUnits.of(model, learned.granularity, learned.channel_block)
    if units.n != len(learned.mask) or units.prunable != learned.parameters:
        raise PruningError(
            f"the mask of {run.path} is of another model: it is over {len(learned.mask):,} units "
            f"of {learned.parameters:,} parameters, but {model_config.model!r} has {units.n:,} of "
            f"{units.prunable:,}; put the model back that the run was started on"
        )
    expected = run.sections.get("decided", {}).get("model_fingerprint")
    if expected not in (None, fingerprint(*model.parameters())):
        raise PruningError(
            f"the model {model_config.model!r} has other weights than when the run {run.path} was "
            "started; put the old ones back"
        )
    return Source(model, tokenizer, units, learned.mask, results, run.sections)


def read_mask(path: Path) -> LearnedMask:
    """Reads the mask that a run has learned.

    Args:
        path: its mask.safetensors.

    Raises:
        PruningError: there is none, or it is truncated or not a mask.
    """
    if not path.exists():
        raise PruningError(
            f"there is no {path}: a run writes it when it ends; go on with it by --resume"
        )
    try:
        with safe_open(path, "pt") as file:
            described = file.metadata() or {}
            mask = file.get_tensor("mask")
        learned = LearnedMask(
            mask,
            described["granularity"],
            int(described["channel_block"]),
            int(described["parameters"]),
        )
        if mask.ndim == 1 and bool(((mask == 0) | (mask == 1)).all()):
            return learned
        reason = "it holds other values than 0 and 1"
    except KeyError as error:
        reason = f"it lacks {error}"
    except (SafetensorError, OSError, ValueError) as error:
        reason = first_line(error)
    raise PruningError(f"the mask {path} is damaged ({reason}); take the run's own file")


def _save(source: Source, model: PreTrainedModel, kind: str, directory: Path) -> PreTrainedModel:
    """Writes a model with all that belongs to it."""
    name = _public_name(source.sections["model"]["model"])
    provenance = dict(getattr(model.config, "pgprune", {}), base_model=name, format=kind)
    model.config.pgprune = provenance
    model.save_pretrained(directory)
    source.tokenizer.save_pretrained(directory)
    remote = model.config.model_type.startswith("pgprune_")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    card = model_card(name, kind, remote, parameters, source.results, source.sections)
    write_file(directory / "README.md", card.encode())
    for file in directory.glob("*.safetensors"):  # which safetensors lets nobody else read
        file.chmod(0o644)
    return model


def _public_name(model: str) -> str:
    """A model's name without the folders that it lies in on this machine."""
    if model == "builtin":
        return "pgprune's built-in model"
    return Path(model).expanduser().resolve().name if Path(model).is_dir() else model


def _read_results(run: Run) -> dict[str, Any]:
    path = run.path / "results.json"
    if not path.exists():
        raise PruningError(
            f"{run.path} has no results yet; go on with it by train_agent.py --resume {run.path}"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PruningError(f"{path} is damaged ({first_line(error)}); restore it") from error
    if not isinstance(results, dict):
        raise PruningError(f"{path} is damaged (no table of results); restore it")
    return results


def _dtype(config: ModelConfig) -> str:
    """The number format to export in: the run's own, else the checkpoint's half precision.

    Half-precision weights that a run has evaluated in float32 lose nothing by going back.
    """
    if config.dtype != "auto":
        return config.dtype
    if config.model == "builtin":
        return "float32"  # as every run evaluates it
    try:
        values, _ = PretrainedConfig.get_config_dict(str(Path(config.model).expanduser()))
    except (OSError, ValueError):
        return "float32"  # loading says what is wrong
    own = str(values.get("dtype", values.get("torch_dtype"))).removeprefix("torch.")
    return own if own in _HALF else "float32"
