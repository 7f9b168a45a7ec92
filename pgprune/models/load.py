"""Loads the frozen language model that is pruned, and its tokenizer.

It first checks all that needs no weights: the device, the directory, the family, the tokenizer, and
that the files of weights are whole. It executes nothing from a checkpoint: weights are safetensors,
and remote code is not trusted.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pgprune.errors import PruningError, first_line
from pgprune.models.discovery import settle_family
from pgprune.models.families import check_kinds
from pgprune.models.gguf_model import check_tensors, read_gguf_model
from pgprune.models.read_config import read_config
from pgprune.models.registration import attention_kernel
from pgprune.models.rows import FAMILIES
from pgprune.models.source import Source, find_source, unreadable
from pgprune.models.vocabulary import begin_windows, guard_vocabulary, load_tokenizer
from pgprune.models.weight_files import (
    check_adapter,
    check_export,
    check_report,
    check_values,
    check_weights,
)
from pgprune.utils.devices import check_dtype, choose_device
from pgprune.utils.files import user_path
from pgprune.utils.options import Config, option
from pgprune.utils.progress import bars_as_phases, phase

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class ModelConfig(Config):
    """Model: which one, on which device, in which number format."""

    model: str = option("builtin", "builtin, smollm2, a hub id, a directory, or a GGUF file")
    device: str = option("auto", "auto (an accelerator if there is one), cpu, cuda, cuda:N or mps")
    dtype: str = option(
        "auto",
        "number format of the weights; auto is float32 on the CPU",
        choices=["auto", *DTYPES],
    )
    device_map: str | None = option(
        None,
        "auto spreads the model over all devices (needs accelerate)",
        choices=["auto"],
        unset="all on one device",
    )
    attn_implementation: str = option(
        "sdpa", "attention kernel of transformers", choices=["sdpa", "eager", "flash_attention_2"]
    )
    gguf_file: str | None = option(
        None, "GGUF file in that directory or hub repository", unset="none", metavar="NAME"
    )
    family: str = option(
        "known",
        "where its layers are: known, auto (find and prove it), or as in a family",
        choices=["known", "auto", *FAMILIES],
    )

    def absolute(self) -> Self:
        """Returns the options with an absolute path, where the model is one."""
        path = user_path(self.model)
        if self.model == "builtin" or not path.exists():
            return self
        return replace(self, model=str(path.absolute()))

    def source(self) -> Source:
        """Finds where the model is read from.

        Raises:
            PruningError: nothing is there, or the directory holds no model.
        """
        return find_source(self.model, self.gguf_file)


def check_model(
    config: ModelConfig, pruned: bool = False
) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Checks a model without its weights, and loads its configuration and tokenizer.

    Args:
        config: which model, device and number format.
        pruned: whether exports of pgprune are allowed.

    Raises:
        PruningError: the device is absent or lacks the number format, or the model is missing, of
            an unknown family, without (whole) safetensors weights or without a tokenizer, or has
            an adapter beside its weights, or a file of an export was damaged or changed.
    """
    device = choose_device(config.device)
    dtype = choose_dtype(config, device)
    _check_device_map(config)
    source = config.source()
    check_adapter(source.place)
    check_export(source)
    if (gguf := source.gguf_path) is not None:
        found = read_gguf_model(gguf)
        found.config.use_cache = False  # masks are evaluated on whole windows
        return found.config, begin_windows(found.tokenizer, found.config)
    model_config = read_config(source.place, pruned, config.family)
    if dtype == "auto":  # the checkpoint decides
        check_dtype(model_config.dtype, device)
    if Path(source.place).is_dir():
        check_weights(Path(source.place), model_config)
    return model_config, load_tokenizer(source.place, model_config)


def load_model(
    config: ModelConfig, pruned: bool = False, kinds: Iterable[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal LM for evaluation: evaluation mode, no gradients, no cache.

    Args:
        config: which model, device and number format.
        pruned: whether exports of pgprune are allowed.
        kinds: of units that are to be pruned; a known family may refuse some.

    Returns:
        The model on its device, and its tokenizer.

    Raises:
        PruningError: as ``check_model``, or weights are missing, have no place in the model, are
            not finite or do not fit into the memory.
    """
    model_config, tokenizer = check_model(config, pruned)
    if model_config.model_type in FAMILIES:
        check_kinds(model_config, kinds)
    device, source = choose_device(config.device), config.source()
    dtype = choose_dtype(config, device)
    placement = {"device_map": config.device_map} if config.device_map else {}
    if torch.float64 in (dtype, model_config.dtype):  # unknown to grouped products of experts
        model_config._experts_implementation = "eager"
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(model_config)]
    with phase(f"loading {config.model}"):
        model = _load_weights(
            source,
            config=model_config,
            dtype=dtype,
            attn_implementation=attention_kernel(kind, config.attn_implementation),
            **placement,
        )
    # accelerate leaves weights that fit nowhere on the meta device.
    if any(parameter.is_meta for parameter in model.parameters()):
        raise PruningError(
            f"the model {config.model!r} does not fit into the memory of all devices together; "
            "choose a smaller dtype or more devices"
        )
    if not placement:  # else accelerate has placed it
        model = move_model(model, device)
    check_values(f"model {config.model!r}", model)
    if config.family != "known" and model_config.model_type not in FAMILIES:
        with phase(f"proving where the layers of {config.model} are"):
            settle_family(config.model, model.eval(), config.family)
    guard_vocabulary(model, tokenizer, config.model)
    return model.eval().requires_grad_(False), tokenizer


def fingerprint(*tensors: Tensor) -> str:
    """Computes a short digest of tensors of any shape: their shapes and a few values of each."""
    digest = hashlib.sha256()
    for tensor in tensors:
        few = tensor.flatten()[:: max(1, tensor.numel() // 64)].double().cpu()  # about 64 values
        digest.update(f"{tuple(tensor.shape)} {few.tolist()}".encode())
    return digest.hexdigest()[:16]


def choose_dtype(config: ModelConfig, device: torch.device) -> torch.dtype | str:
    """Returns the number format to load in, ``auto`` for the checkpoint's own.

    Raises:
        PruningError: the device lacks it.
    """
    if config.dtype == "auto":
        if device.type == "cpu" or config.model == "builtin":
            return torch.float32
        # A GGUF file's blocks of integers name no number format to compute in.
        is_gguf = config.source().gguf_file is not None
        return torch.bfloat16 if is_gguf else "auto"
    check_dtype(DTYPES[config.dtype], device)
    return DTYPES[config.dtype]


def _check_device_map(config: ModelConfig) -> None:
    if config.device_map is None:
        return
    if config.device != "auto":
        raise PruningError(
            f"device_map auto and device {config.device!r} contradict each other; give one of them"
        )
    if find_spec("accelerate") is None:
        raise PruningError(
            "device_map auto needs the package accelerate; run `pip install accelerate`"
        )


def _load_weights(source: Source, **options: Any) -> PreTrainedModel:
    try:
        with bars_as_phases():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.place,
                use_safetensors=True,  # never a pickle, which can run code
                trust_remote_code=False,
                output_loading_info=True,
                **source.options,
                **options,
            )
    except Exception as error:  # odd values in a model's files raise errors of all types
        raise PruningError(unreadable(str(source), "weights", error)) from error
    model, report = loaded
    check_report(str(source), report)
    if (gguf := source.gguf_path) is not None:
        check_tensors(gguf, read_gguf_model(gguf).tensors, len(list(model.parameters())))
    return model


def move_model(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves a model to a device; raises ``PruningError`` where it does not fit into its memory."""
    try:
        return model.to(device)  # type: ignore[arg-type]
    except torch.OutOfMemoryError as error:
        raise PruningError(
            f"the model does not fit into the memory of {device} ({first_line(error)}); choose a "
            "smaller dtype, device_map auto or device cpu"
        ) from error
