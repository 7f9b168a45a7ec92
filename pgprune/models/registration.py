"""Registers pruned models with transformers, so that they load without ``trust_remote_code``.

``pgprune.register()`` is a call and no effect of ``import pgprune``: the classes need transformers'
own, whose import takes seconds and loads torch.
"""

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CODE = "modeling_pgprune"
"""The module of ``pgprune.hub_code`` that is copied into exported models."""

SLICED_CODE = "modeling_slicegpt"
"""The module of ``pgprune.hub_code`` that is copied into sliced models."""


_ENDINGS = {  # in the order that vLLM needs
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForCausalLM": "ForCausalLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
}
"""Endings of the names of the classes, by the automatic class that finds them."""


class PrunedClasses(NamedTuple):
    """The classes of one family of pruned models."""

    config: Any
    model: Any
    causal_lm: Any
    classifier: Any

    @property
    def auto_map(self) -> dict[str, str]:
        """The configuration value by which transformers finds the classes beside the weights."""
        file = self.config.__module__.rpartition(".")[2]
        return {auto: f"{file}.{kind.__name__}" for auto, kind in zip(_ENDINGS, self, strict=True)}


def pruned_classes(model_type: str) -> PrunedClasses:
    """Returns the classes of pruned models of a family, by the dense model's ``model_type``.

    They are registered with transformers' automatic classes.
    """
    return _classes(CODE, "PGPrune", model_type)


def sliced_classes(model_type: str) -> PrunedClasses:
    """Returns the classes of sliced models of a family, registered likewise."""
    return _classes(SLICED_CODE, "SliceGPT", model_type)


@cache
def _classes(file: str, brand: str, model_type: str) -> PrunedClasses:
    import transformers

    code = importlib.import_module(f"pgprune.hub_code.{file}")
    family = transformers.CONFIG_MAPPING[model_type].__name__.removesuffix("Config")
    names = (brand + family + ending for ending in _ENDINGS.values())
    classes = PrunedClasses(*(getattr(code, name) for name in names))
    # exist_ok: an export that is loaded with remote code registers the same names.
    transformers.AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
    for auto, kind in zip(_ENDINGS, classes, strict=True):
        if auto != "AutoConfig":
            getattr(transformers, auto).register(classes.config, kind, exist_ok=True)
    return classes


def attention_kernel(kind: "type[PreTrainedModel]", wanted: str) -> str:
    """Returns ``eager`` in place of ``sdpa`` for models that need soft-capping (Gemma 2)."""
    return "eager" if wanted == "sdpa" and not kind._supports_sdpa else wanted


def register(model_type: str = "") -> None:
    """Registers the classes of pruned and sliced models with transformers' automatic classes.

    ``AutoModelForCausalLM.from_pretrained`` then loads exports without ``trust_remote_code``. A
    second call changes nothing.

    Args:
        model_type: of the only family to register, before it was pruned; all by default.
    """
    import transformers

    from pgprune.models.rows import FAMILIES

    for name, family in FAMILIES.items():
        if name in transformers.CONFIG_MAPPING and model_type in ("", name):
            pruned_classes(name)
            if family.sliced:
                sliced_classes(name)
    if model_type and model_type not in FAMILIES:  # of a family that was found
        pruned_classes(model_type)
