"""The part of a model that is trained: low-rank adapters (LoRA), or weights themselves.

The adapters are those of peft (Hu et al. 2022, arXiv 2106.09685), of all projections of a frozen
model; they are merged into it in the end.
"""

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pgprune.errors import PruningError
from pgprune.finetuning.training import device_of, seeded
from pgprune.models.families import decoder_layers
from pgprune.models.family import Family
from pgprune.models.rows import FAMILIES
from pgprune.utils.options import Config, option


@dataclass(frozen=True)
class LoraConfig(Config):
    """LoRA: the adapters."""

    rank: int = option(16, "rank of the adapters", minimum=1)
    alpha: float = option(10.0, "scale of the adapters: they count alpha / rank times", above=0)
    dropout: float = option(0.0, "dropout of the adapters' inputs", minimum=0, below=1)


def check_peft() -> None:
    """Makes sure that peft is installed.

    Raises:
        PruningError: it is not.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise PruningError(
            "finetuning needs the package peft; run `pip install 'pgprune[finetune]'`"
        ) from None


def listed_family(config: PretrainedConfig) -> Family:
    """Returns the family of a model, dense or pruned.

    Raises:
        PruningError: it is not listed.
    """
    kind = f"_{config.model_type}"  # as in _llama, _pgprune_llama
    families = [family for name, family in FAMILIES.items() if kind.endswith(f"_{name}")]
    if not families:
        raise PruningError(
            f"a model of the family {config.model_type!r}, which pgprune does not list, "
            "cannot be finetuned here; export the run and finetune it with peft"
        )
    parallel = getattr(config, "use_parallel_residual", families[0].parallel)
    return replace(families[0], parallel=parallel)


def projections(model: PreTrainedModel) -> list[str]:
    """Lists the linear projections in the blocks of a model, pruned or not, as dotted paths.

    Where pruning left nothing of a projection but its bias, it is not in the list.

    Raises:
        PruningError: the model has none, or its family is not listed.
    """
    family = listed_family(model.config)
    paths_of_linears = [
        f"{family.layers}.{index}.{path}"
        for index, layer in enumerate(decoder_layers(model, family))
        for path, module in layer.named_modules()
        if path.removesuffix(".linear") in family.of(layer).linears
        and isinstance(module, nn.Linear)
    ]
    if not paths_of_linears:
        raise PruningError(
            "the model has no projections left that could be finetuned; prune less of it"
        )
    return paths_of_linears


class Adapters:
    """Adapters in a model, as a ``Trainable``.

    Args:
        model: a causal LM without gradients; ``merge`` gives it back.
        config: of the adapters.
        seed: of their start.

    Attributes:
        model: the model, with adapters in it.
        parameters: the adapters' weights by name.

    Raises:
        PruningError: peft is not installed, or the model is in float16 or has no projections.
    """

    def __init__(self, model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
        check_peft()
        import peft

        refuse_float16(model)
        alpha: Any = config.alpha  # fractions work as well
        adapters = peft.LoraConfig(
            r=config.rank,
            lora_alpha=alpha,
            lora_dropout=config.dropout,
            target_modules=projections(model),
        )
        with seeded(seed, 0, device_of(model)), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what transformers says to peft
            self._adapted: Any = peft.get_peft_model(model, adapters)
        model.eval()
        # The base model has no dropout in evaluation mode; the adapters keep theirs.
        for name, module in model.named_modules():
            if "lora_dropout" in name:
                module.train()
        self.model = model
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def merge(self) -> PreTrainedModel:
        """Adds the adapters to the weights and removes them; returns the model."""
        merged: PreTrainedModel = self._adapted.merge_and_unload(safe_merge=True)
        return merged.eval().requires_grad_(False)


class Weights:
    """Weights of a model, as a ``Trainable``.

    Weights of 16 bits are trained in float32, as most steps are below their last bit; ``merge``
    rounds them.

    Args:
        model: a causal LM without gradients; ``merge`` gives it back.
        layers: whether only the weights of the layers are trained: no embeddings, head, final norm.

    Attributes:
        model: the model.
        parameters: its trained weights by name.

    Raises:
        PruningError: the model is in float16.
    """

    def __init__(self, model: PreTrainedModel, layers: bool) -> None:
        refuse_float16(model)
        prefix = f"{listed_family(model.config).layers}." if layers else ""
        self._dtype, self.model = model.dtype, model
        if model.dtype.itemsize < 4:
            model.float()
        self.parameters = {n: p for n, p in model.named_parameters() if n.startswith(prefix)}
        for parameter in self.parameters.values():
            parameter.requires_grad_()

    def merge(self) -> PreTrainedModel:
        """Returns the model in its number format, without gradients."""
        self.model.zero_grad()
        return self.model.to(self._dtype).requires_grad_(False)  # type: ignore[arg-type]


def refuse_float16(model: PreTrainedModel) -> None:
    """Refuses gradients in float16, which need a scaling of the loss that training does not have.

    Raises:
        PruningError: the model is in float16.
    """
    if model.dtype == torch.float16:
        raise PruningError(
            "float16 overflows in finetuning; choose dtype bfloat16 or float32 for the model"
        )
