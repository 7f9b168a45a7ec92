"""The stages of a finetuning: blocks by themselves, then the whole model."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from pgprune.finetuning.batches import Batches
from pgprune.finetuning.checkpoint import Checkpoint, State
from pgprune.finetuning.distillation import Distillation
from pgprune.finetuning.local import LocalDistillation
from pgprune.finetuning.objectives import CrossEntropy, Objective, autocast
from pgprune.finetuning.parts import Adapters, Weights, listed_family
from pgprune.finetuning.settings import FinetuningSettings
from pgprune.finetuning.training import Trainer, device_of, recomputing
from pgprune.finetuning.validation import Keeper
from pgprune.utils.progress import note, phase

_SHOWN_UPDATES = 20  # whose mean loss is shown


@dataclass(frozen=True)
class Stage:
    """What a stage did.

    Attributes:
        name: ``local``, ``distillation`` or ``finetuning``.
        tokens: of the windows that it trained on, counted in each pass.
        seconds: that it took, validation included.
        completed: whether it was not interrupted.
        facts: the rest, by the name of a section of the record.
    """

    name: str
    tokens: int
    seconds: float
    completed: bool
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What the stages work with.

    Attributes:
        settings: what is asked for.
        model: that is trained.
        teacher: the dense model, where one teaches.
        layers: index of the dense layer that each layer of the model was, where that is needed.
        batches: to train on.
        held: held-out windows (V, T) by the name of their text.
        record: what every checkpoint holds.
        seconds: of the command so far.
    """

    settings: FinetuningSettings
    model: PreTrainedModel
    teacher: PreTrainedModel | None
    layers: tuple[int, ...]
    batches: Batches
    held: Mapping[str, Tensor]
    record: Mapping[str, Any]
    seconds: Callable[[], float]

    def saved(self, values: Mapping[str, Any], stage_seconds: float) -> dict[str, Any]:
        """Returns the record of a checkpoint of a stage."""
        times = {"seconds": self.seconds(), "stage_seconds": stage_seconds}
        return {**self.record, **values, **times}


def fit_blocks(
    work: Work, checkpoint: Checkpoint, resumed: State | None, interrupted: Callable[[], bool]
) -> Stage:
    """Fits each attention and MLP by itself, from a checkpoint if there is one."""
    settings, started, earlier = work.settings, time.monotonic(), 0.0
    assert work.teacher is not None
    device, width = device_of(work.model), int(work.model.config.hidden_size)
    local = LocalDistillation(
        work.model,
        work.teacher,
        work.layers,
        work.batches.first(settings.local.local_windows),
        work.held,
        config=settings.local,
        highest=settings.highest_local_step(width),
        seed=settings.finetuning.seed,
        autocast=autocast(settings.training.precision, device),
    )
    if resumed:
        local.restore(*resumed)
        earlier = resumed[1]["stage_seconds"]
        note(f"resuming local distillation after layer {local.done:,} of {len(work.layers):,}")

    def seconds() -> float:
        return earlier + time.monotonic() - started

    def save() -> None:
        tensors, values = local.state()
        checkpoint.save(tensors, work.saved(values, seconds()))

    local.run(interrupted, save)
    found = {
        "blocks": [vars(error) for error in local.errors],
        "learning_rate": settings.highest_local_step(width),
        "windows": local.windows,
    }
    completed = local.done == len(work.layers)
    return Stage("local", local.tokens, seconds(), completed, {"local": found})


def train(
    work: Work, checkpoint: Checkpoint, resumed: State | None, interrupted: Callable[[], bool]
) -> Stage:
    """Trains the model, from a checkpoint if there is one, and merges what it has learned."""
    settings, started, earlier = work.settings, time.monotonic(), 0.0
    config, seed, model = settings.training, settings.finetuning.seed, work.model
    highest = settings.highest_step(int(model.config.hidden_size))
    part: Adapters | Weights
    if settings.train == "lora":
        part = Adapters(model, settings.lora, seed)
    else:
        part = Weights(model, settings.train == "layers")
    trainer = Trainer(part, work.batches, _objective(work), config, highest, seed)
    every = settings.validation.validate_every or max(1, trainer.total // 16)
    patience = settings.validation.patience
    keeper = Keeper(model, part.parameters, work.held, every, patience)
    if resumed:
        trainer.restore(*resumed)
        keeper.restore(*resumed)
        earlier = resumed[1]["stage_seconds"]
        note(f"resuming after update {trainer.step:,} of {trainer.total:,}")

    def seconds() -> float:
        return earlier + time.monotonic() - started

    def save() -> None:
        (tensors, values), (kept, seen) = trainer.state(), keeper.state()
        checkpoint.save({**tensors, **kept}, work.saved({**values, **seen}, seconds()))

    again = recomputing(model, listed_family(model.config))
    with again if config.gradient_checkpointing else nullcontext():
        keeper.look(trainer.step)
        with phase("finetuning", trainer.total, "updates", trainer.step) as updates:
            while trainer.step < trainer.total and not interrupted() and not keeper.stop:
                trainer.advance()
                updates.reach(trainer.step, {"loss": f"{_smoothed(trainer.losses):.4f}"})
                keeper.look(trainer.step)
                if trainer.step % settings.finetuning.checkpoint_every == 0:
                    if trainer.step < trainer.total:
                        save()
        keeper.look(trainer.step, last=True)
    keeper.put_back(trainer.step)
    part.merge()
    facts = _facts(settings, trainer, keeper, highest)
    completed = trainer.step == trainer.total or keeper.stop
    name = "distillation" if settings.distillation.distill else "finetuning"
    return Stage(name, trainer.tokens, seconds(), completed, facts)


def _objective(work: Work) -> Objective:
    settings = work.settings
    products = autocast(settings.training.precision, device_of(work.model))
    if work.teacher is None or not settings.distillation.distill:
        return CrossEntropy(products)
    return Distillation(work.teacher, settings.distillation, work.layers, products)


def _facts(
    settings: FinetuningSettings, trainer: Trainer, keeper: Keeper, highest: float
) -> dict[str, Any]:
    """Collects what was done, without its outcome in perplexity."""
    # The means of the first and the last tenth tell whether something was learned.
    few = max(1, trainer.total // 10)
    found: dict[str, Any] = {
        "updates": {"done": trainer.step, "planned": trainer.total},
        "loss": {"first": _mean(trainer.losses[:few]), "last": _mean(trainer.losses[-few:])},
        "training": {
            **vars(settings.training),
            "train": settings.train,
            "learning_rate": highest,
            "trained_parameters": trainer.trained_parameters,
        },
    }
    if settings.train == "lora":
        found["lora"] = vars(settings.lora)
    if settings.distillation.distill:
        loss = vars(settings.distillation).items()
        found["distillation"] = {n: v for n, v in loss if n not in ("distill", "teacher")}
    if keeper.history:
        found["kept"] = {"update": keeper.best, "history": keeper.history}
    return found


def _smoothed(losses: list[float]) -> float:
    """Averages the last losses: that of one update scatters too much to watch."""
    last = losses[-_SHOWN_UPDATES:]
    return sum(last) / len(last)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
