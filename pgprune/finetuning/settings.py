"""All settings of a finetuning, what follows from them, and what contradicts."""

from argparse import Namespace
from dataclasses import dataclass, field, fields
from typing import Self, get_type_hints

from pgprune.data.training_data import TrainingDataConfig
from pgprune.errors import PruningError
from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.distillation import DistillationConfig
from pgprune.finetuning.local import LocalConfig
from pgprune.finetuning.parts import LoraConfig, check_peft
from pgprune.finetuning.training import TrainingConfig
from pgprune.finetuning.validation import ValidationConfig
from pgprune.utils.command_line import from_arguments
from pgprune.utils.options import Config
from pgprune.utils.process_ids import local_world_size, world_size

LEARNING_RATE = 1e-3
"""Of plain finetuning by LoRA."""

# Step sizes by the width of the model: Adam's best one falls with 1 / width (Yang et al. 2022,
# arXiv 2203.03466). The factors were measured on the built-in model (docs/recovery.md).
_ADAPTERS, _WEIGHTS, _BLOCKS = 1.6, 0.16, 0.48


@dataclass(frozen=True)
class FinetuningSettings:
    """The options of a finetuning.

    Attributes:
        finetuning: evaluation, and where the result goes.
        data: what the model is trained on.
        training: which weights, and the steps.
        lora: the adapters.
        distillation: what the dense model teaches.
        local: local distillation.
        validation: windows that are held out.

    Raises:
        PruningError: two options contradict, or one is of a stage that is not asked for.
    """

    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    def __post_init__(self) -> None:
        """Checks what several options must agree on."""
        local, distill = self.local.local, self.distillation.distill
        _refuse(self.distillation, () if distill else (*_DISTILLATION,), "--distill")
        if not (distill or local):
            _refuse(self.distillation, ("teacher",), "--distill or --local")
        if not local:
            _refuse(self.local, [each.name for each in fields(self.local)], "--local")
        given = {"samples": self.data.samples != TrainingDataConfig.samples}
        given |= {"epochs": self.training.epochs > 1}
        for name in (name for name in given if given[name] and self.data.tokens is not None):
            raise PruningError(f"--tokens and --{name} contradict each other; give one of them")
        if self.trains and self.train == "lora":
            check_peft()
        self._check_processes()

    def _check_processes(self) -> None:
        """Checks that each process has windows to compute, and a device."""
        sizes = {"batch-size": self.training.batch_size} if self.trains else {}
        sizes |= {"local-batch-size": self.local.local_batch_size} if self.local.local else {}
        for name, size in sizes.items():
            if size < world_size():
                raise PruningError(
                    f"{world_size()} processes cannot share the {size} windows of an update; start "
                    f"at most {size}, or choose a larger --{name}"
                )
        if local_world_size() > 1 and ":" in self.finetuning.device:
            raise PruningError(
                f"device {self.finetuning.device} would hold all {local_world_size()} processes of "
                "a host; choose cuda or auto, which give each a device of its own"
            )

    @classmethod
    def from_arguments(cls, arguments: Namespace) -> Self:
        """Reads all options of the command line."""
        hints = get_type_hints(cls)
        return cls(**{name: from_arguments(kind, arguments) for name, kind in hints.items()})

    @property
    def trains(self) -> bool:
        """Whether the whole model is trained, and not blocks by themselves alone."""
        return self.distillation.distill or not self.local.local

    @property
    def teaches(self) -> bool:
        """Whether a dense model is needed."""
        return self.distillation.distill or self.local.local

    @property
    def validates(self) -> bool:
        """Whether windows are held out."""
        return self.teaches or self.validation.validation is not None

    @property
    def train(self) -> str:
        """What is trained: ``lora``, ``layers`` or ``all``."""
        return self.training.train or ("layers" if self.distillation.distill else "lora")

    def highest_step(self, width: int) -> float:
        """Returns the highest step size for a model of a width."""
        if self.training.learning_rate is not None:
            return self.training.learning_rate
        if self.train == "lora":
            return _ADAPTERS / width if self.distillation.distill else LEARNING_RATE
        return _WEIGHTS / width

    def highest_local_step(self, width: int) -> float:
        """Returns the highest step size of a block for a model of a width."""
        return self.local.local_learning_rate or _BLOCKS / width


_DISTILLATION = ("temperature", "top_k", "cross_entropy_weight", "hidden_loss_weight")


def _refuse(config: Config, names: list[str] | tuple[str, ...], needed: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value != config.__dataclass_fields__[name].default:
            option = f"--{name.replace('_', '-')}"
            raise PruningError(f"{option} {value} is for {needed} alone; add that, or leave it out")
