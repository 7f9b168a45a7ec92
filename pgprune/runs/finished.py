"""A finished run, read: its mask, its results, and the dense model that they belong to."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune.errors import PruningError, first_line
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.load import ModelConfig, fingerprint, load_model
from pgprune.repair.config import REPAIR_FILE
from pgprune.repair.repair import Repair, check_repair
from pgprune.runs.run import Run
from pgprune.surgery.layers import prune
from pgprune.surgery.slice_model import slice_model
from pgprune.surgery.stream_slices import RECORD, Slices

_HALF = ("bfloat16", "float16")
_TIE = 1e-9  # far less than probabilities differ by that are not saturated


@dataclass(frozen=True)
class LearnedMask:
    """A run's mask and what it says of itself.

    Attributes:
        mask: (n,) uint8, 1 keeps.
        granularity: of its units.
        channel_block: channels of one unit.
        parameters: of all its units together.
        scores: (n,) float64, what the mask was rounded from: the final keep probabilities, where
            they tie with a preference for what the initial mask keeps, or a method's scores. None
            where the run kept neither.
        probable: whether the scores are probabilities, which compare between layers.
    """

    mask: Tensor
    granularity: str
    channel_block: int
    parameters: int
    scores: Tensor | None
    probable: bool


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
        learned: the mask that the run ended with, and what it was rounded from.
        round_to: what every layer's number of channels is meant to be a multiple of.
        notes: sentences on how the mask differs from the learned one, for people.
        slices: what is kept of the residual stream, where the method sliced it.
        repair: what comes with the mask.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    units: PruningUnits
    mask: Tensor
    results: dict[str, Any]
    sections: dict[str, dict[str, Any]]
    learned: LearnedMask
    round_to: int = 1
    notes: tuple[str, ...] = ()
    slices: Slices | None = None
    repair: Repair | None = None

    def pruned(self) -> PreTrainedModel:
        """The physically smaller model.

        Raises:
            PruningError: the mask leaves no layer, or the slices are of another model.
        """
        if self.slices is not None:
            return slice_model(self.model, self.slices)
        return prune(self.model, self.units, self.mask, self.repair)


def load_source(run: Run) -> Source:
    """Loads what a run was about and what came out of it.

    Args:
        run: a run with results.

    Raises:
        PruningError: as ``export``.
    """
    results = read_results(run)
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
    round_to = run.sections.get("pruning", {}).get("round_to", 1)
    slices = Slices.load(run.path) if (run.path / RECORD).exists() else None
    repair = read_repair(run, results)
    if repair is not None:
        check_repair(MaskedLM(model, units), repair)
    return Source(
        model,
        tokenizer,
        units,
        learned.mask,
        results,
        run.sections,
        learned,
        round_to,
        notes=() if slices is None else (str(slices),),
        slices=slices,
        repair=repair,
    )


def read_repair(run: Run, results: dict[str, Any]) -> Repair | None:
    """Reads what comes with a run's mask.

    Args:
        run: with results.
        results: the content of its results.json.

    Returns:
        The repair; None where the run has none.

    Raises:
        PruningError: it is missing or damaged.
    """
    table, path = results.get("perplexity", {}), run.path / REPAIR_FILE
    differs = "masked" in table and table.get("pruned") != table["masked"]
    return Repair.load(path) if differs or path.exists() else None


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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        mask = tensors["mask"]
        learned = LearnedMask(
            mask,
            described["granularity"],
            int(described["channel_block"]),
            int(described["parameters"]),
            _scores(tensors),
            "probabilities" in tensors,
        )
        if mask.ndim == 1 and bool(((mask == 0) | (mask == 1)).all()):
            return learned
        reason = "it holds other values than 0 and 1"
    except KeyError as error:
        reason = f"it lacks {error}"
    except (SafetensorError, OSError, ValueError) as error:
        reason = first_line(error)
    raise PruningError(f"the mask {path} is damaged ({reason}); take the run's own file")


def _scores(tensors: dict[str, Tensor]) -> Tensor | None:
    """Final keep probabilities, many of which are exactly 1, with something to order those by."""
    scores = tensors.get("probabilities", tensors.get("scores"))
    if scores is None or scores.shape != tensors["mask"].shape:
        return None
    tied = "probabilities" in tensors and "initial" in tensors
    return scores.double() + (_TIE * tensors["initial"] if tied else 0)


def read_results(run: Run) -> dict[str, Any]:
    """The content of a run's results.json.

    Raises:
        PruningError: there is none yet, or it is damaged.
    """
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
