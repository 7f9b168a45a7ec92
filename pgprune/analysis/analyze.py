"""Analyzes a model: counts it, computes what less needs, measures how sensitive its parts are."""

import math
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from transformers import PreTrainedModel

from pgprune.analysis.census import census
from pgprune.analysis.needs import Need, needs, needs_of_targets
from pgprune.analysis.sensitivity import Sensitivity, sensitivities
from pgprune.budget.budget import Budget
from pgprune.budget.problem import PruningConfig
from pgprune.budget.targets import parse_targets
from pgprune.data.calibration import open_calibration
from pgprune.data.documents import calibration_parts
from pgprune.data.stream import DataConfig, check_sequence_length
from pgprune.errors import PruningError
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.pruned import check_masks
from pgprune.masking.units import GRANULARITIES, PruningUnits
from pgprune.metrics import METRICS
from pgprune.metrics.base import EXPERTS, FINE
from pgprune.models.families import is_found
from pgprune.models.load import DTYPES, ModelConfig, check_model, load_model
from pgprune.models.read_config import PRUNED
from pgprune.models.value_rotation import fit_rotations, rotate_values
from pgprune.runs.any_model import load_any, run_at
from pgprune.runs.finished import export_dtype
from pgprune.runs.model_card import public_name
from pgprune.utils.files import check_new
from pgprune.utils.memory import within_memory
from pgprune.utils.options import SEEDS, Config, option, same_option
from pgprune.utils.progress import phase

_METRIC_WINDOWS = 32  # of calibration text, that units are ordered by
_METRIC_RATE = 0.25  # of metrics that prune while they score
_LONGEST = 8192  # tokens of a cache, where nothing else is asked
_USUAL = ("values+channels", "heads+channels", "heads+experts")
_ELSE = ("channels", "experts")  # of models whose heads are not known


@dataclass(frozen=True)
class AnalysisConfig(Config):
    """Analysis: what is measured, and on what."""

    granularity: str = option(
        "auto",
        "units whose pruning is measured",
        choices=["auto", *FINE, *EXPERTS],
    )
    metric: str = option(
        "auto",
        "what chooses the units that a layer keeps",
        choices=lambda: ["auto", *METRICS],
    )
    calibration: str = same_option(DataConfig, "calibration", "builtin")
    windows: int = option(8, "calibration windows that losses are measured on", minimum=1)
    sequence_length: int = same_option(DataConfig, "sequence_length", 128)
    sensitivity: bool = option(True, "measure how much the loss rises without parts of layers")
    batch_size: int = option(1, "sequences in the cache, for the memory", minimum=1)
    context: int | None = option(
        None,
        "tokens of each sequence in the cache, for the memory",
        minimum=1,
        unset=f"the model's context, at most {_LONGEST:,}",
    )
    target: tuple[str, ...] | None = same_option(PruningConfig, "target", None)
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = same_option(ModelConfig, "dtype", "auto")
    family: str = same_option(ModelConfig, "family", "known")
    seed: int = option(0, "seed of the calibration windows", minimum=0, maximum=SEEDS)
    output: str | None = option(
        None,
        "new directory for analysis.json, analysis.md and sensitivity.png",
        unset="none, the tables are printed",
        metavar="DIR",
    )
    quiet: bool = option(False, "show no progress, only the results")


class Analysis:
    """A model to analyze, checked and loaded; ``sensitivities`` measures its parts.

    Args:
        source: a dense model, an export or a finished run.
        config: what to measure.

    Attributes:
        source: what the user typed.
        config: as it was given.
        pruned: whether it is an export, or the model of a run: its parts are not measured.
        census: what the model is made of.
        dtype: number format that an export has.
        cached: sequences in the cache, and tokens of each.
        targets: by granularity, the prune rate that meets all targets, or why there is none.
        units: what may be pruned, by granularity, the one that is measured first; none if pruned.

    Raises:
        PruningError: anything that cannot work, the most of it before weights are read.
    """

    def __init__(self, source: str, config: AnalysisConfig) -> None:
        if config.output is not None:
            check_new(Path(config.output))
        targets = parse_targets(config.target or ())
        self.source, self.config = source, config
        run = run_at(source)
        asked = ModelConfig(source, config.device, config.dtype, family=config.family)
        self.pruned = run is not None or _is_pruned(asked)
        self.dtype = export_dtype(asked if run is None else run.config("model", ModelConfig))
        self.units: dict[str, PruningUnits] = {}
        with within_memory("choose --dtype bfloat16 or a smaller --sequence-length"):
            if self.pruned:
                self._model = load_any(source, device=config.device, dtype=config.dtype).model
            else:
                self._load(asked)
            self.census = census(self._model)
        self.targets = {
            name: needs_of_targets(targets, self._model, units)
            for name, units in self.units.items()
            if targets
        }
        self.cached = config.batch_size, _context(self._model, config.context)

    @property
    def name(self) -> str:
        """The model, without the folders of this machine."""
        return public_name(self.source)

    @property
    def granularity(self) -> str:
        """Units that are measured."""
        return next(iter(self.units))

    @property
    def metric(self) -> str:
        """The metric that orders them."""
        if self.config.metric != "auto":
            return self.config.metric
        return "stream-error" if self.granularity in FINE else "reap"

    def needs(self) -> list[Need]:
        """Computes what less parameters and memory need, by each granularity."""
        tokens, itemsize = math.prod(self.cached), DTYPES[self.dtype].itemsize
        every = (needs(self.census, units, itemsize, tokens) for units in self.units.values())
        return sorted(chain.from_iterable(every), key=lambda need: need.what, reverse=True)

    def sensitivities(self) -> list[Sensitivity]:
        """Measures each group of units, unless the model is pruned or this is not asked for.

        The model's value dimensions get another basis for it, as the recommended agent does it.
        """
        config = self.config
        if self.pruned or not config.sensitivity:
            return []
        units = self.units[self.granularity]
        ordered, few = self._stream.first(_METRIC_WINDOWS), self._stream.head(config.windows, True)
        with within_memory("choose a smaller --sequence-length"):
            if "values" in units.kinds:
                rotate_values(self._model, fit_rotations(self._model, ordered))
            executor = "masked" if "experts" in units.kinds else "sliced"
            lm = MaskedLM(self._model, units, executor)
            if is_found(self._model.config):
                check_masks(lm)
            budget = Budget(units, _METRIC_RATE, scope="local")
            importance = METRICS[self.metric](lm, ordered, budget, config.seed)
            return sensitivities(lm, importance.scores, few)

    def _load(self, asked: ModelConfig) -> None:
        """Loads a dense model, its units and, if they are measured, the calibration text."""
        config = self.config
        # Before the weights: a text that is not there.
        parts = calibration_parts(config.calibration) if config.sensitivity else []
        if "auto" not in (config.granularity, config.metric):
            METRICS[config.metric].check(config.granularity)
        model, tokenizer = load_model(asked, kinds=GRANULARITIES.get(config.granularity, ()))
        self._model, self.units = model, _units(model, config.granularity)
        METRICS[self.metric].check(self.granularity)
        if not config.sensitivity:
            return
        check_sequence_length(model.config, config.sequence_length)
        data = DataConfig(
            calibration=config.calibration, sequence_length=config.sequence_length, batch_size=1
        )
        with phase("reading the calibration text"):
            self._stream, _ = open_calibration(data, tokenizer, config.seed, parts)


def _context(model: PreTrainedModel, asked: int | None) -> int:
    """Returns the tokens of a sequence in the cache."""
    limit = getattr(model.config, "max_position_embeddings", None)
    if asked is None:
        return min(limit or _LONGEST, _LONGEST)
    if limit is not None and asked > limit:
        raise PruningError(
            f"--context {asked} is more than the model's context of {limit} tokens; choose at most "
            f"{limit}"
        )
    return asked


def _is_pruned(asked: ModelConfig) -> bool:
    model_config, _ = check_model(asked, pruned=True)
    return str(model_config.model_type).startswith(PRUNED)


def _units(model: PreTrainedModel, asked: str) -> dict[str, PruningUnits]:
    """Returns the units of the usual granularities that the model has, the asked one first.

    Raises:
        PruningError: it has none of the asked one, or of any.
    """
    found: dict[str, PruningUnits] = {}
    if asked != "auto":
        found[asked] = PruningUnits.of(model, asked)
    for granularity in (*_USUAL, *_ELSE):
        if granularity in found or (granularity in _ELSE and found):
            continue
        try:
            found[granularity] = PruningUnits.of(model, granularity)
        except PruningError as error:
            refused = error
    if not found:
        raise refused
    return found
