"""The dense model that teaches: which one, whether it fits the student, and the memory of both."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune.errors import PruningError, ResourceError
from pgprune.models.load import ModelConfig, check_model, load_model
from pgprune.models.read_config import PRUNED
from pgprune.runs.finished import FinishedRun
from pgprune.runs.model_card import public_name
from pgprune.utils.files import user_path
from pgprune.utils.memory import free_memory
from pgprune.utils.process_ids import local_world_size

_SLICED = f"{PRUNED}slicegpt"


class Teacher:
    """The dense model of a pruned one, checked without its weights; ``load`` reads these.

    Args:
        source: the model that is finetuned.
        run: at the source, if there is one.
        asked: the teacher that the user names, if any.
        config: configuration of the source; for a run, of its dense model.
        tokenizer: of the source.
        device: as ``ModelConfig``, and so is ``dtype``.
        dtype: of the student.
        attn_implementation: as ``ModelConfig``.

    Attributes:
        name: of the model, as the user or the run typed it.
        config: of the model.

    Raises:
        PruningError: nothing says which model it is, it cannot be loaded, or its tokens are others.
    """

    def __init__(
        self,
        source: str,
        run: FinishedRun | None,
        asked: str | None,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str,
        dtype: str,
        attn_implementation: str = "sdpa",
    ) -> None:
        if asked is None and run is not None:
            own = replace(run.config("model", ModelConfig), device_map=None)
        else:
            own = ModelConfig(_named(source, config) if asked is None else asked)
        self._model = replace(
            own, device=device, dtype=dtype, attn_implementation=attn_implementation
        )
        self.name = own.model
        self.config, its_tokenizer = check_model(self._model, pruned=True)
        if its_tokenizer.get_vocab() != tokenizer.get_vocab():
            raise PruningError(
                f"the teacher {self.name!r} has another vocabulary than {source!r}, so that their "
                "predictions do not compare; give the model that was pruned as --teacher"
            )

    def load(self) -> PreTrainedModel:
        """Loads the model, without gradients.

        Raises:
            PruningError: it cannot be loaded.
        """
        return load_model(self._model, pruned=True)[0]

    def layers_of(self, student: PreTrainedModel, remedy: str) -> tuple[int, ...]:
        """Returns which dense layer each layer of a student was.

        Args:
            student: a pruned model, or one of the same shape.
            remedy: what does without a comparison of states, for the error.

        Raises:
            PruningError: their states do not compare.
        """
        config: Any = student.config
        count = int(self.config.num_hidden_layers)
        own = int(config.num_hidden_layers)
        known = (getattr(config, "pgprune", None) or {}).get("layers", range(own))
        same = config.hidden_size == self.config.hidden_size
        if config.model_type.startswith(_SLICED) or not same:
            raise PruningError(
                f"the states of the teacher {self.name!r} do not compare with those of a model of "
                f"another width or basis; {remedy}"
            )
        if len(known) != own or max(known) >= count or (known == range(own) and own != count):
            raise PruningError(
                f"the layers of the teacher {self.name!r} are not those that the model was pruned "
                f"from, so their states do not compare; give that model as --teacher, or {remedy}"
            )
        return tuple(known)


def check_memory(
    source: str,
    run: FinishedRun | None,
    teacher: Teacher,
    *,
    trained: str,
    device: torch.device,
    dtype: torch.dtype | str,
) -> None:
    """Checks that teacher and student fit into the free memory, where their sizes can be told.

    Args:
        source: the model that is finetuned.
        run: at the source, if there is one.
        teacher: checked, not loaded.
        trained: ``lora``, ``layers`` or ``all``.
        device: of both models.
        dtype: of their weights; ``auto`` for the checkpoint's own.

    Raises:
        ResourceError: they do not fit.
    """
    if run is not None:
        counts = run.results.get("parameters", {})
        student, dense = counts.get("pruned"), counts.get("dense")
    else:
        student, dense = stored_parameters(source), stored_parameters(teacher.name)
    free = free_memory(device)
    if student is None or dense is None or free is None:
        return
    size = dtype.itemsize if isinstance(dtype, torch.dtype) else 2
    needed = (dense + student) * size
    if trained != "lora":
        # Float32 weights in the place of those, gradients, two moments, the best weights.
        needed += student * (4 * 5 - size)
    # The processes of a host share its memory, and have a GPU each.
    copies = local_world_size() if device.type == "cpu" else 1
    if needed * copies > free:
        lower = "--train lora, " if trained != "lora" else ""
        lower += "fewer processes, " if copies > 1 else ""
        whose = f" of {copies} processes" if copies > 1 else ""
        raise ResourceError(
            f"teacher and student{whose} need {needed * copies / 1e9:.1f} GB of memory and their "
            f"activations, but {free / 1e9:.1f} GB are free; choose {lower}--dtype bfloat16, "
            "or another --device"
        )


def stored_parameters(source: str) -> int | None:
    """Counts the numbers in a directory's weights without reading them; None elsewhere."""
    path: Path = user_path(source)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    total = 0
    for file in files:
        with safe_open(file, "pt") as weights:
            shapes = (weights.get_slice(name).get_shape() for name in weights.keys())  # noqa: SIM118
            total += sum(torch.Size(shape).numel() for shape in shapes)
    return total or None


def _named(source: str, config: PretrainedConfig) -> str:
    """Returns the dense model that an export names, if it can be found by that name."""
    base = (getattr(config, "pgprune", None) or {}).get("base_model")
    if base == public_name("builtin"):
        return "builtin"
    hint = f" ({source!r} was pruned from {base!r})" if base else ""
    raise PruningError(f"nothing says where the dense model is; give --teacher MODEL{hint}")
