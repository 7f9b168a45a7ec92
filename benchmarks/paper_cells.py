"""The tables of docs/results.md as data: the cells of each, and how they are shown.

Tables share cells, and a cell of several tables is measured once.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from pgprune.agents.reinforce import default_learning_rate
from pgprune.experiments.cells import Cell
from pgprune.utils.jsonl import Record

RATES = (0.3, 0.4, 0.5)
GRID = tuple(2e-3 * 2**k for k in range(7))
"""Learning rates that the formula is chosen on; 2e-3 is the paper's."""


DEFAULTS: dict[str, Any] = {
    "task": "learn",  # a mask; or "variance", of the estimator at the initial s
    "model": "stories260K",  # a folder in "models" of the assets, or "builtin"
    "calibration": "tinystories[:500]",  # a name with "tinystories" is a file of the assets
    "evaluation": "tinystories[500:1000]",
    "granularity": "heads+channels",
    "prune_rate": 0.4,
    "init": "auto",
    "transform": "sigmoid-norm",  # from the metric's scores to probabilities
    "score": "preconditioned",
    "baseline": "moving-average",
    "window": 5,  # T of the moving average
    "masks": 2,  # masks per step, N_s
    "scope": "global",  # of the budget
    "learning_rate": None,  # the formula
    "timesteps": 2000,
    "seed": 0,
    "agent": "reinforce",  # or "auto", which ignores transform to window and the learning rate
}
"""The settings of a cell of the paper's tables, by the name that records and tables give them."""

_OF_CELL = ("task", "model", "granularity", "prune_rate", "seed", "agent")


def ablation(**settings: Any) -> Cell:
    """Returns the cell of some settings; those that are left out are the defaults."""
    every = DEFAULTS | settings
    # Only what differs from the defaults, so that a later setting leaves older keys as they are.
    changed = [
        f"{name}={every[name]}"
        for name, default in DEFAULTS.items()
        if name not in _OF_CELL and every[name] != default
    ]
    name = every["agent"] if every["task"] == "learn" else every["task"]
    method = ":".join(filter(None, [name, ",".join(changed)]))
    return Cell(method, every["model"], every["prune_rate"], every["seed"], every["granularity"])


def settings_of(cell: Cell) -> dict[str, Any]:
    """Returns all settings of a cell, as ``ablation`` takes them."""
    # Options are texts in a method's name; each is read as its default's type.
    kinds = {name: type(default) for name, default in DEFAULTS.items()} | {"learning_rate": float}
    options = {name: kinds[name](value) for name, value in cell.options.items()}
    kind = {"task": cell.name} if cell.name == "variance" else {"agent": cell.name}
    place = {"model": cell.model, "prune_rate": cell.rate, "granularity": cell.granularity}
    return {**DEFAULTS, **options, **kind, **place, "seed": cell.seed}


def vary(cell: Cell, **settings: Any) -> Cell:
    """Returns the cell with other settings."""
    return ablation(**settings_of(cell) | settings)


def resolved(cell: Cell) -> Cell:
    """Returns the cell with the formula's learning rate, which is what is measured and stored."""
    settings = settings_of(cell)
    if settings["learning_rate"] is not None or cell.name != "reinforce":
        return cell
    rate = default_learning_rate(settings["timesteps"], settings["granularity"])
    return vary(cell, learning_rate=rate)


def adapted(record: Record) -> Record:
    """Returns a record with the key of its cell; older ones lack settings that came later.

    Raises:
        KeyError: it is no record of a cell.
    """
    method, task, seed = ablation(**record["cell"]).key
    cell = {"method": method, "task": task, "seed": seed, "cell": DEFAULTS | record["cell"]}
    return record | cell


@dataclass(frozen=True)
class Table:
    """Cells and how they are shown.

    Attributes:
        title: one line.
        cells: in the order in which they are measured.
        rows: fields whose values name a row; ``set`` is the evaluation text.
        columns: the field whose values become columns, if any.
        values: what is shown of each group of seeds: names of ``paper_tables.VALUES``.
    """

    title: str
    cells: list[Cell]
    rows: tuple[str, ...] = ("prune_rate",)
    columns: str = ""
    values: tuple[str, ...] = ("learned",)


def seeds(count: int, cells: list[Cell]) -> list[Cell]:
    """Repeats the cells for seeds 0, 1, ...; all cells of a seed come before the next seed."""
    return [vary(cell, seed=seed) for seed in range(count) for cell in cells]


def builtin(cell: Cell) -> Cell:
    """Moves a cell to the built-in model, calibrated on code and evaluated on code and prose."""
    return vary(cell, model="builtin", calibration="builtin", evaluation="builtin")


def baby(cell: Cell) -> Cell:
    """Moves a cell to babyllama-361."""
    return vary(cell, model="babyllama-361")


_STORIES = [ablation(prune_rate=rate) for rate in RATES]
_MASKS = ("metric", "learned")
_STARTS = ("auto", "random", "random-progressive", "llm-pruner")
_SWEEP = (0.002, 0.01, 0.02, 0.05, 0.1)


def _main() -> list[Cell]:
    return seeds(3, [*_STORIES, *map(baby, _STORIES)])


def _auto(evaluations: int = 260) -> list[Cell]:
    """Returns cells of the recommended and the default agent; validations would make 300."""
    cells = [*_STORIES, *map(baby, _STORIES), *map(builtin, _STORIES)]
    few = [vary(cell, agent="auto", masks=10, timesteps=evaluations) for cell in cells]
    return seeds(3, [*few, *cells])


def _reproduction() -> list[Cell]:
    low, high = (ablation(prune_rate=rate, learning_rate=0.05) for rate in (0.3, 0.5))
    sweep = [vary(high, learning_rate=rate) for rate in _SWEEP]
    return seeds(8, [low]) + seeds(3, [high]) + sweep


def _grid(budgets: tuple[int, ...]) -> list[Cell]:
    return [ablation(timesteps=n, learning_rate=rate) for n, rate in product(budgets, GRID)]


def _learning_rate() -> list[Cell]:
    # Short runs come first, so that an interrupted command has whole grids.
    short, long = _grid((300, 1000)), _grid((3000,))
    again = [vary(cell, seed=seed) for seed in (1, 2) for cell in (*short, *long)]
    return [*short, *map(baby, short), *long, *again, *map(baby, long)]


def _window_masks() -> list[Cell]:
    variants = [{}, {"window": 3}, {"window": 7}, {"masks": 3}, {"masks": 4}]
    rates = (0.3, 0.5)
    return seeds(3, [ablation(prune_rate=r, **v) for r, v in product(rates, variants)])


def _layers() -> list[Cell]:
    plain = ablation(granularity="layers", transform="score-const", timesteps=500)
    small = [vary(plain, prune_rate=rate) for rate in (0.2, 0.4, 0.6)]
    large = [vary(builtin(small[0]), prune_rate=rate) for rate in (0.25, 0.33, 0.5)]
    return seeds(3, small) + seeds(3, large)


def _domain() -> list[Cell]:
    sources = ("builtin", "builtin:prose")
    cells = [
        vary(builtin(ablation(prune_rate=rate, timesteps=1000)), calibration=source)
        for rate, source in product((0.5, 0.3), sources)
    ]
    return seeds(3, cells)


TABLES: dict[str, Table] = {
    "learning-rate": Table(
        "Learning rate: calibration loss on a grid",
        _learning_rate(),
        rows=("model", "timesteps"),
        columns="learning_rate",
        values=("validation", "learned"),
    ),
    "main": Table(
        "One-shot mask against the learned mask, default settings",
        _main(),
        rows=("model", "prune_rate", "set"),
        values=("dense", "metric", "learned", "kept"),
    ),
    "auto": Table(
        "The recommended agent with 260 evaluations, the paper's with 2,000",
        _auto(),
        rows=("model", "prune_rate", "set"),
        columns="agent",
        values=("metric", "learned"),
    ),
    "reproduction": Table(
        "The released implementation's settings",
        _reproduction(),
        rows=("prune_rate", "learning_rate"),
        values=("start", "learned", "kept"),
    ),
    "baseline": Table(
        "With and without the moving-average baseline (Table A8)",
        seeds(3, [*_STORIES, *(vary(cell, baseline="none") for cell in _STORIES)])
        + seeds(3, [vary(cell, baseline="leave-one-out") for cell in _STORIES]),
        columns="baseline",
    ),
    "window-masks": Table(
        "Window T and masks per step N_s, equal evaluations (Table A9)",
        _window_masks(),
        rows=("window", "masks"),
        columns="prune_rate",
    ),
    "transform": Table(
        "From scores to probabilities (Table A10)",
        seeds(3, [*_STORIES, *(vary(cell, transform="score-const") for cell in _STORIES)]),
        columns="transform",
        values=("start", "learned"),
    ),
    "init": Table(
        "Initialisation (Table 2)",
        seeds(
            3,
            [vary(cell, init=init) for cell, init in product(_STORIES, _STARTS)],
        ),
        columns="init",
        values=("start", "learned"),
    ),
    "scope": Table(
        "Global against local budgets (Fig. 5)",
        seeds(3, [*_STORIES, *(vary(cell, scope="local") for cell in _STORIES)]),
        columns="scope",
    ),
    "variance": Table(
        "Variance of the estimator at the initial s (Appendix A.4)",
        [
            ablation(task="variance", prune_rate=rate, timesteps=1200)
            for rate in (0.1, 0.2, 0.3, 0.4, 0.5)
        ],
    ),
    "error-bars": Table(
        "Ten seeds (Table A7)",
        seeds(10, _STORIES),
        values=("metric", "learned", "kept"),
    ),
    "main-builtin": Table(
        "One-shot mask against the learned mask, built-in model, default settings",
        seeds(3, [builtin(cell) for cell in _STORIES]),
        rows=("model", "prune_rate", "set"),
        values=("dense", "metric", "learned", "kept"),
    ),
    "layers": Table(
        "Whole layers",
        _layers(),
        rows=("model", "prune_rate", "set"),
        values=("dense", *_MASKS, "oracle", "validation-metric", "validation", "validation-oracle"),
    ),
    "learning-rate-builtin": Table(
        "Learning rate: calibration loss on a grid, built-in model",
        [builtin(cell) for cell in _grid((300, 1000))],
        rows=("model", "timesteps"),
        columns="learning_rate",
        values=("validation",),
    ),
    "domain": Table(
        "Calibrated on code or on prose, evaluated on both",
        _domain(),
        rows=("prune_rate", "set"),
        columns="calibration",
        values=_MASKS,
    ),
}
"""All tables, in the order in which they are measured."""
