"""A pruning problem: the frozen model, its units, the budget and the calibration stream."""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.budget.bounds import bounds_of
from pgprune.budget.budget import BUDGETS, SCOPES, Budget
from pgprune.budget.least import asked_least, layers_of, share_of_kind
from pgprune.budget.product import check_product
from pgprune.budget.targets import parse_targets
from pgprune.budget.times import Tables, kept_table
from pgprune.data.calibration import open_calibration
from pgprune.data.documents import calibration_parts, evaluation_documents
from pgprune.data.stream import (
    CalibrationStream,
    DataConfig,
    check_sequence_length,
)
from pgprune.errors import PruningError
from pgprune.masking.basis import Basis
from pgprune.masking.executor_choice import choose_executor
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.kept_weights import KERNELS, check_kernels
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.pruned import check_masks
from pgprune.masking.units import GRANULARITIES, PruningUnits
from pgprune.models.families import is_found
from pgprune.models.load import ModelConfig, fingerprint, load_model
from pgprune.utils.devices import choose_device, say_if_busy
from pgprune.utils.options import Config, option
from pgprune.utils.progress import phase

TOKENS_PER_TIMESTEP = 1024
"""Tokens of one mask evaluation: one mask on the paper's batch of 8 x 128 tokens."""

_BASIS_WINDOWS = 128  # of calibration text, or as many as there are


@dataclass(frozen=True)
class PruningConfig(Config):
    """Options of pruning: the units, the budget and the executor."""

    prune_rate: float = option(0.4, "share of the prunable parameters to remove", above=0, below=1)
    target: tuple[str, ...] | None = option(
        None,
        "in place of a rate: parameters<=100M, memory<=6GB@8x8192; all must hold",
        unset="the prune rate",
        metavar="TARGET",
    )
    keep_at_least: tuple[str, ...] | None = option(
        None,
        "share of a kind that each layer keeps at least, as in heads=0.5",
        unset="nothing",
        metavar="KIND=SHARE",
    )
    keep_layers: str | None = option(
        None, "layers that stay whole, as in 0,1,-1", unset="none", metavar="LAYERS"
    )
    granularity: str = option(
        "heads+channels", "units that a mask bit keeps or prunes", choices=list(GRANULARITIES)
    )
    rotate_values: bool = option(
        True, "value dimensions: change their basis first, so that few carry most"
    )
    channel_block: int = option(1, "neighbouring MLP channels per unit", minimum=1)
    budget: str = option(
        "per-kind",
        "what the rate counts: each kind of unit, all units, or parameters",
        choices=list(BUDGETS),
    )
    scope: str = option(
        "auto",
        "layers may differ (global), share one rate (local), or have equal shapes",
        choices=["auto", *SCOPES],
    )
    round_to: int = option(
        1, "round kept channels per layer to a multiple of this (8-128 is fast)", minimum=1
    )
    executor: str = option(
        "auto",
        "how masks are evaluated: multiply, compute kept units only, or the cheaper",
        choices=["auto", *EXECUTORS],
    )
    kernels: str = option(
        "plain",
        "products of the sliced executor; triton (CUDA only) is experimental",
        choices=list(KERNELS),
    )
    compile_head: bool = option(
        False, "experimental: compile head and loss by torch.compile, for a GPU"
    )

    def __post_init__(self) -> None:
        """Refuses what an option does not allow, reads the targets, and decides the scope.

        No other tool loads layers with different numbers of experts, so they are equal where the
        budget fixes a number.
        """
        super().__post_init__()
        if parse_targets(self.target or ()) and self.prune_rate != type(self).prune_rate:
            raise PruningError(
                f"prune_rate {self.prune_rate} and target {' '.join(self.target or ())} both say "
                "how much to prune; leave one of the two out"
            )
        layers_of(self.keep_layers or "")
        for text in self.keep_at_least or ():
            share_of_kind(text)
        if self.scope == "auto":
            equal = "experts" in GRANULARITIES[self.granularity] and self.budget == "per-kind"
            object.__setattr__(self, "scope", "uniform" if equal else "global")
        kinds = GRANULARITIES.get(self.granularity, ())
        check_product(kinds, self.budget, self.scope, self.target is not None)

    @property
    def amount(self) -> str:
        """Says in a file's name how much is pruned: the rate or the targets."""
        if self.target is None:
            return f"{self.prune_rate:g}"
        return "+".join(re.sub(r"[^\w.]+", "-", target) for target in self.target)

    def budget_of(
        self,
        model: PreTrainedModel,
        units: PruningUnits,
        biases: bool = False,
        tables: Tables = kept_table,
    ) -> Budget:
        """Makes the budget of a model's units.

        Args:
            model: the dense model.
            units: of the model.
            biases: whether a repair may add biases, which count in targets.
            tables: returns the table of times of a target.

        Raises:
            PruningError: the units do not allow it, or no mask meets a target.
        """
        units = asked_least(units, self.keep_at_least, self.keep_layers)
        if self.target is None:
            return Budget(units, self.prune_rate, self.budget, self.scope, self.round_to)
        bounds = bounds_of(parse_targets(self.target), model, units, biases, tables)
        return Budget.within(units, bounds, self.budget, self.scope, self.round_to)


@dataclass(frozen=True)
class Problem:
    """All that is needed to choose a mask.

    Attributes:
        lm: the frozen model under masks.
        units: the units of mask bits.
        budget: the masks that are allowed.
        stream: calibration batches.
        validation: windows that the stream never gives, (V, T).
        tokenizer: of the model.
        data: options of calibration and evaluation text.
        model_fingerprint: of the model as it was loaded.
        basis: that the units are in; the model was changed to it.
    """

    lm: MaskedLM
    units: PruningUnits
    budget: Budget
    stream: CalibrationStream
    validation: Tensor
    tokenizer: PreTrainedTokenizerBase
    data: DataConfig
    model_fingerprint: str = ""
    basis: Basis = Basis()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Problem":
        """Returns the problem itself: copies of an environment share the frozen model."""
        return self

    @classmethod
    def make(cls, seed: int = 0, masks_per_step: int = 2, **options: Any) -> "Problem":
        """Loads a problem from options by name, whichever config they belong to.

        Args:
            seed: of the calibration stream.
            masks_per_step: as in ``make_problem``.
            **options: fields of ``ModelConfig``, ``DataConfig`` and ``PruningConfig``.

        Raises:
            PruningError: an unknown option, or what ``make_problem`` refuses.
        """
        kinds = (ModelConfig, DataConfig, PruningConfig)
        parts: dict[type[Config], dict[str, Any]] = {kind: {} for kind in kinds}
        where = {name: kind for kind in kinds for name in kind.__dataclass_fields__}
        for name, value in options.items():
            if name not in where:
                raise PruningError(
                    f"unknown argument {name!r}; the known ones are {', '.join(where)}"
                )
            parts[where[name]][name] = value
        return make_problem(
            ModelConfig(**parts[ModelConfig]),
            DataConfig(**parts[DataConfig]),
            PruningConfig(**parts[PruningConfig]),
            seed,
            masks_per_step,
        )


def make_problem(
    model: ModelConfig,
    data: DataConfig,
    pruning: PruningConfig,
    seed: int = 0,
    masks_per_step: int = 2,
    biases: bool = False,
    tables: Tables = kept_table,
) -> Problem:
    """Loads the model and the text, and checks that they and the budget fit together.

    Args:
        model: which model, where and in which number format.
        data: calibration and evaluation text.
        pruning: units and budget.
        seed: of the calibration stream.
        masks_per_step: masks evaluated on one batch, for the choice of the executor.
        biases: whether a repair may add biases, which count in targets.
        tables: returns the table of times of a target.

    Raises:
        PruningError: options that do not work, or do not work together.
    """
    # Opened first: text that cannot be read is an error before the model loads for minutes.
    parts = calibration_parts(data.calibration)
    evaluation_documents(data.evaluation)
    check_kernels(pruning.kernels, pruning.executor, choose_device(model.device))
    if pruning.compile_head and model.device_map:
        raise PruningError(
            "--compile-head needs head and states on one device, where --device-map may not leave "
            "them; leave one of the two out"
        )
    kinds = GRANULARITIES.get(pruning.granularity, ())
    language_model, tokenizer = load_model(model, kinds=kinds)
    if language_model.device.type == "cpu":
        say_if_busy()
    check_sequence_length(language_model.config, data.longest)
    units = asked_least(
        PruningUnits.of(language_model, pruning.granularity, pruning.channel_block),
        pruning.keep_at_least,
        pruning.keep_layers,
    )
    budget = pruning.budget_of(language_model, units, biases, tables)
    with phase("reading the calibration text"):
        stream, validation = open_calibration(data, tokenizer, seed, parts)
    loaded = fingerprint(*language_model.parameters())
    windows = partial(stream.first, _BASIS_WINDOWS)
    basis = Basis.fitted(language_model, units, windows, pruning.rotate_values)
    basis.apply(language_model)
    tokens = data.batch_size * data.sequence_length
    executor = _executor_of(
        pruning, language_model, units, budget.prune_rate, masks_per_step, tokens
    )
    lm = MaskedLM(language_model, units, executor, pruning.kernels, pruning.compile_head)
    lm.meter.add(len(basis.tensors()) and windows().numel())
    if is_found(language_model.config):
        check_masks(lm)
    return Problem(lm, units, budget, stream, validation, tokenizer, data, loaded, basis)


def _executor_of(
    pruning: PruningConfig,
    model: PreTrainedModel,
    units: PruningUnits,
    rate: float,
    masks: int,
    tokens: int,
) -> str:
    """Returns the executor that is asked for, or the cheaper one for masks of so many tokens."""
    if pruning.executor != "auto":
        return pruning.executor
    if pruning.kernels != "plain":
        return "sliced"
    return choose_executor(units, rate, masks, tokens, model.dtype, model.device.type)
