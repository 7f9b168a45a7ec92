"""Defines pruning methods: calls from a problem to a mask, with what they fit and need."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pgprune.budget.budget import BUDGETS
from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.metrics import METRICS, Importance, Metric
from pgprune.metrics.bonsai import FRACTION, MASKS, WINDOWS
from pgprune.metrics.flap import FLUCTUATIONS
from pgprune.metrics.llm_pruner import TAYLOR
from pgprune.repair.repair import Repair
from pgprune.surgery.stream_slices import Slices
from pgprune.utils.options import Config, option
from pgprune.utils.progress import phase


@dataclass(frozen=True)
class Pruned:
    """The result of a method.

    Attributes:
        mask: (n,) uint8, 1 keeps; within the budget.
        importance: the scores that the mask was rounded from, where there are any.
        repair: weights and biases that belong to the mask, where the method changes them.
        slices: the kept part of the residual stream, if the method slices it; then the mask
            keeps all.
        notes: figures for results.json, as JSON can hold them.
    """

    mask: Tensor
    importance: Importance | None = None
    repair: Repair | None = None
    slices: Slices | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def _method_names() -> list[str]:
    return list(METHODS)  # read late: METHODS needs this config, and grows


@dataclass(frozen=True)
class MethodConfig(Config):
    """Method: which one, and its options.

    Raises:
        PruningError: a value that its field does not allow.
    """

    method: str = option(
        "wanda-sp", "metric or method that chooses the mask", choices=_method_names
    )
    method_samples: int = option(128, "calibration windows of the method", minimum=1)
    protect_layers: bool = option(
        True, "llm-pruner, layerwise-taylor, magnitude, gisp: protect outer layers"
    )
    taylor: str = option(
        "element-first",
        "llm-pruner: terms of the Taylor expansion that are summed",
        choices=list(TAYLOR),
    )
    fluctuation: str = option(
        "variance",
        "flap: the paper's variance, or what the released code computes",
        choices=list(FLUCTUATIONS),
    )
    barrier: int = option(1, "sleb: layers at each end that are never pruned", minimum=0)
    learning_timesteps: int = option(
        2000,
        "gumbel-softmax, hard-concrete, tyr: passes on 1,024 tokens each",
        minimum=1,
    )
    learning_step: float | None = option(
        None,
        "gumbel-softmax, hard-concrete: step size of Adam",
        above=0,
        maximum=10,
        unset="the method's own",
    )
    bonsai_masks: int = option(
        MASKS, "bonsai: sub-models per round, in antithetic pairs", minimum=10
    )
    bonsai_windows: int = option(
        WINDOWS, "bonsai: windows that sub-models are evaluated on", minimum=1
    )
    bonsai_fraction: float = option(
        FRACTION, "bonsai: share of the units that a round prunes", above=0, maximum=0.5
    )
    gisp_fraction: float = option(
        0.00625, "gisp: share of the parameters (or units) that a step prunes", above=0, maximum=0.5
    )
    modegpt_entropy: float = option(
        0.1, "modegpt: weight of the entropy of the layers' rates; large: equal rates", above=0
    )
    tyr_offspring: int = option(16, "tyr: candidates of each generation", minimum=1)
    slice_fraction: float | None = option(
        None,
        "slicegpt: share of the residual stream to cut off",
        minimum=0,
        below=1,
        unset="what the prune rate needs",
    )


Prune = Callable[[Problem, Tensor, int, MethodConfig], Pruned]
"""(problem, calibration windows (N, T), seed, options) -> what the method has decided."""


@dataclass(frozen=True)
class Method:
    """A pruning method: a function, and what it fits and needs. ``method`` makes one.

    Attributes:
        name: on the command line.
        prune: the function.
        granularities: that fit it; the first is its default.
        budgets: that fit it; the first is its default.
        random: whether the seed changes the mask.
        backward: whether it back-propagates through the model.
        learns: whether it learns for ``learning_timesteps``.
        slices: whether it makes layers narrower instead of pruning units.
        biases: whether its own repair may add biases.
    """

    name: str
    prune: Prune
    granularities: tuple[str, ...]
    budgets: tuple[str, ...] = BUDGETS
    random: bool = False
    backward: bool = False
    learns: bool = False
    slices: bool = False
    biases: bool = False

    def __call__(
        self, problem: Problem, windows: Tensor, seed: int, config: MethodConfig
    ) -> Pruned:
        """Chooses a mask.

        Args:
            problem: the frozen model, the budget and the calibration stream.
            windows: calibration token ids, (N, T).
            seed: of methods that draw at random.
            config: options of all methods; a method's docstring names those it reads.

        Raises:
            PruningError: units or a budget that do not fit, or an error of the method.
        """
        for what, value, fitting in (
            ("granularity", problem.units.granularity, self.granularities),
            ("budget", problem.budget.kind, self.budgets),
        ):
            if value not in fitting and not self.slices:  # slicing prunes no unit
                raise PruningError(
                    f"method {self.name} does not fit {what} {value!r}; choose "
                    f"{' or '.join(fitting)}"
                )
        bounds = problem.budget.bounds
        if self.slices and any(bound.target.quantity != "parameters" for bound in bounds):
            raise PruningError(
                f"method {self.name} slices all layers alike, so a target limits its parameters "
                "only; leave out the others"
            )
        with phase(f"method {self.name}"):
            pruned = self.prune(problem, windows, seed, config)
        if self.slices:
            return pruned
        if not problem.budget.keeps_enough(pruned.mask):
            raise PruningError(
                f"method {self.name} has a rule of its own for what layers keep, which "
                "--keep-at-least and --keep-layers contradict; choose another method"
            )
        if not problem.budget.allows(pruned.mask):
            texts = " and ".join(bound.target.text for bound in bounds)
            raise PruningError(
                f"method {self.name} has a rule of its own for what layers keep, which leads above "
                f"{texts}; choose another method"
            )
        return pruned


def method(name: str, granularities: tuple[str, ...], **needs: Any) -> Callable[[Prune], Method]:
    """Makes a method of a function; the arguments are those of ``Method``."""
    return lambda prune: Method(name, prune, granularities, **needs)


def one_shot(metric: Metric) -> Method:
    """Makes a method of a metric: score once, round, done."""

    def prune(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
        options = {name: getattr(config, name) for name in metric.options}
        # Not by its call: the method is a phase already, and has checked the granularity.
        importance = metric.score(problem.lm, windows, problem.budget, seed, **options)
        return Pruned(importance.mask(problem.budget), importance)

    fits, random, backward = metric.granularities, metric.random, metric.backward
    return Method(metric.name, prune, fits, random=random, backward=backward)


class Methods(Mapping[str, Method]):
    """All methods by name: every metric, also one that is added later, and the whole methods.

    Attributes:
        whole: methods that are more than a metric, by name; ``pgprune.methods`` lists them.
    """

    def __init__(self) -> None:
        self.whole: dict[str, Method] = {}

    def __getitem__(self, name: str) -> Method:
        return self.whole[name] if name in self.whole else one_shot(METRICS[name])

    def __iter__(self) -> Iterator[str]:
        return iter({**METRICS, **self.whole})

    def __len__(self) -> int:
        return len({**METRICS, **self.whole})


METHODS = Methods()
