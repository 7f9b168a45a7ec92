"""Registers pruned models with transformers, so that they load without ``trust_remote_code``.

``pgprune.register()`` is a call and no effect of ``import pgprune``: the classes need transformers'
own, whose import takes seconds and loads torch.
"""

import importlib
from typing import Any, NamedTuple

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
    """Returns the classes of pruned models of a family, by the dense model's ``model_type``."""
    return _classes(CODE, "PGPrune", model_type)


def sliced_classes(model_type: str) -> PrunedClasses:
    """Returns the classes of sliced models of a family, by the dense model's ``model_type``."""
    return _classes(SLICED_CODE, "SliceGPT", model_type)


def _classes(file: str, brand: str, model_type: str) -> PrunedClasses:
    from transformers import CONFIG_MAPPING

    code = importlib.import_module(f"pgprune.hub_code.{file}")
    family = CONFIG_MAPPING[model_type].__name__.removesuffix("Config")
    return PrunedClasses(*(getattr(code, brand + family + ending) for ending in _ENDINGS.values()))


def register() -> None:
    """Registers the classes of all families with transformers' automatic classes.

    ``AutoModelForCausalLM.from_pretrained`` then loads exports without ``trust_remote_code``. A
    second call changes nothing.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    from pgprune.models.families import FAMILIES

    # exist_ok: an export that is loaded with remote code registers the same names.
    for classes in (*map(pruned_classes, FAMILIES), *map(sliced_classes, FAMILIES)):
        AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
        AutoModel.register(classes.config, classes.model, exist_ok=True)
        AutoModelForCausalLM.register(classes.config, classes.causal_lm, exist_ok=True)
        AutoModelForSequenceClassification.register(
            classes.config, classes.classifier, exist_ok=True
        )
