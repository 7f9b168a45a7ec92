"""Recovery within a make: the dense model teaches the pruned one for as long as it is given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pgprune.data.training_data import TrainingDataConfig
from pgprune.errors import ResourceError
from pgprune.finetuning.config import FinetuningConfig
from pgprune.finetuning.distillation import DistillationConfig
from pgprune.finetuning.finetune import Finetuning
from pgprune.finetuning.local import LocalConfig
from pgprune.finetuning.settings import FinetuningSettings
from pgprune.finetuning.training import TrainingConfig
from pgprune.making.forecast import Forecast
from pgprune.making.state import State
from pgprune.utils.devices import choose_device
from pgprune.utils.memory import free_memory
from pgprune.utils.options import choices_of

_LOCAL = 0.25  # share of the time that blocks are fitted by themselves
_FEWEST = 16  # windows, below which this is left out


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
        state.stages["recovery"] = plan(state.forecast, minutes, train)
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
        TrainingConfig(train=decided["train"]),
        distillation=DistillationConfig(distill=True),
        local=LocalConfig(local=True, local_windows=local) if local else LocalConfig(),
    )
    return bool(Finetuning(str(run), settings).run()["completed"])


def plan(forecast: Forecast, minutes: float, train: str) -> dict[str, Any]:
    """Divides the time between blocks by themselves and the whole model.

    Returns:
        ``local_windows`` (0 for none), ``tokens`` of the distillation, and ``train``.
    """
    length, usual = TrainingDataConfig().sequence_length, LocalConfig()
    share = forecast.kept / forecast.parameters
    # The dense states once; each pass forward and backward; and each block forward, twice.
    passes = 1 + share * (3 * usual.local_passes + 2)
    per_window = forecast.seconds * passes * length / 1024
    windows = min(usual.local_windows, int(_LOCAL * 60 * minutes / per_window))
    windows = windows if windows >= _FEWEST else 0
    left = minutes - windows * per_window / 60
    return {"local_windows": windows, "tokens": forecast.recovery_tokens(left), "train": train}


def trained(forecast: Forecast, device: torch.device) -> str:
    """Returns which weights there is memory to train: of the layers, or adapters.

    Raises:
        ResourceError: not even adapters.
    """
    free = free_memory(device)
    if free is None or forecast.training_memory("layers") <= free:
        return "layers"
    if forecast.training_memory("lora") <= free:
        return "lora"
    raise ResourceError(
        f"teacher and student need {forecast.training_memory('lora') / 1e9:.1f} GB of memory, but "
        f"{free / 1e9:.1f} GB are free; choose --dtype bfloat16, another --device, or leave out "
        "--recovery-minutes"
    )
