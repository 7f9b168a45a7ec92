"""Recovery within a make: the dense model teaches the pruned one for as long as it is given."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgprune.budget.problem import TOKENS_PER_TIMESTEP
from pgprune.data.training_data import TrainingDataConfig
from pgprune.errors import ResourceError
from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.distillation import DistillationConfig
from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.local import LocalConfig
from pgprune.finetuning.settings import FinetuningSettings
from pgprune.finetuning.training import TrainingConfig
from pgprune.finetuning.validation import ValidationConfig
from pgprune.making.forecast import Forecast
from pgprune.making.state import State
from pgprune.utils.devices import choose_device
from pgprune.utils.memory import free_memory
from pgprune.utils.options import choices_of

_LOCAL = 0.25  # share of the time that blocks are fitted by themselves
_FEWEST = 16  # windows, below which this is left out
_VALIDATION = 0.15  # share of the rest that held-out windows may take
_LOOKS = (4, 16)  # validations, at least and at most


def recover(run: Path, output: Path, state: State, save: Callable[[], object]) -> bool:
    """Distils the dense model into that of a run, from a checkpoint if there is one.

    Args:
        run: the finished search.
        output: directory of the recovered model.
        state: of the make; gets what was decided, so that a resumed recovery does the same.
        save: writes the state.

    Returns:
        Whether it came to its end; after Ctrl-C it keeps what was learned so far.

    Raises:
        PruningError: as ``Finetuning``.
    """
    model, minutes = state.search.model, state.config.recovery_minutes
    assert minutes is not None
    if "recovery" not in state.stages:
        train = trained(state.forecast, choose_device(model.device))
        found = {"train": train, "precision": state.forecast.precision}
        state.stages["recovery"] = plan(state.forecast, minutes) | found
        save()
    decided = state.stages["recovery"]
    formats = choices_of(FinetuningConfig.__dataclass_fields__["dtype"]) or ()
    left = any(output.parent.glob(f"{output.name}.*checkpoint.safetensors"))
    local = decided["local_windows"]
    settings = FinetuningSettings(
        FinetuningConfig(
            output=str(output),
            device=model.device,
            dtype=model.dtype if model.dtype in formats else "auto",
            seed=state.config.seed,
            resume=left,
        ),
        TrainingDataConfig(tokens=str(decided["tokens"])),
        TrainingConfig(train=decided["train"], precision=decided["precision"]),
        distillation=DistillationConfig(distill=True),
        local=LocalConfig(local=True, local_windows=local) if local else LocalConfig(),
        validation=ValidationConfig(
            validation_windows=decided["validation_windows"],
            validate_every=decided["validate_every"],
        ),
    )
    return bool(Finetuning(str(run), settings).run()["completed"])


def plan(forecast: Forecast, minutes: float) -> dict[str, Any]:
    """Divides the time between blocks by themselves, the whole model, and held-out windows.

    Returns:
        ``local_windows`` (0 for none), ``tokens`` of the distillation, held-out
        ``validation_windows`` of each of two texts, and ``validate_every``, in updates.
    """
    usual, seconds = LocalConfig(), 60 * minutes
    windows = forecast.window / TOKENS_PER_TIMESTEP  # in 1,024 tokens
    # The dense states once; each pass forward and backward; and each block forward, twice.
    per_window = (
        windows * forecast.teaching_seconds * (1 + forecast.share * (3 * usual.local_passes + 2))
    )
    local = min(usual.local_windows, int(_LOCAL * seconds / per_window))
    local = local if local >= _FEWEST else 0
    seconds -= local * per_window
    both = 2 * forecast.share * windows * forecast.seconds  # a held-out window of each text
    held = int(_VALIDATION * seconds / (_LOOKS[0] * both))
    held = min(max(held, 4), ValidationConfig().validation_windows)
    looks = min(max(int(_VALIDATION * seconds / (held * both)), _LOOKS[0]), _LOOKS[1])
    tokens = forecast.recovery_tokens(max(0, seconds - looks * held * both))
    updates = math.ceil(tokens / (TrainingConfig().batch_size * forecast.window))
    return {
        "local_windows": local,
        "tokens": tokens,
        "validation_windows": held,
        "validate_every": max(1, math.ceil(updates / (looks - 1))),
    }


def trained(forecast: Forecast, device: torch.device, loaded: int = 0) -> str:
    """Returns which weights there is memory to train: of the layers, or adapters.

    Args:
        forecast: with the sizes of teacher and student.
        device: of both.
        loaded: bytes in use now, which will be free by then.

    Raises:
        ResourceError: not even adapters.
    """
    free = free_memory(device)
    free = None if free is None else free + loaded
    if free is None or forecast.training_memory("layers") <= free:
        return "layers"
    if forecast.training_memory("lora") <= free:
        return "lora"
    raise ResourceError(
        f"teacher and student need {forecast.training_memory('lora') / 1e9:.1f} GB of memory, but "
        f"{free / 1e9:.1f} GB are free; choose --dtype bfloat16, another --device, or leave out "
        "--recovery-minutes"
    )
