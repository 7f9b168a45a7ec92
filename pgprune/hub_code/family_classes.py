"""Makes the classes of a family of changed models of the stock ones, when they are asked for.

A copy is beside the code that needs it. Names are those of transformers behind a brand: a
``PGPruneLlamaModel`` is a changed ``LlamaModel``. Only the family that is asked for is imported, so
a transformers that lacks a family still loads all others.
"""

import sys
from typing import Any

from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    PreTrainedModel,
)
from transformers.models.auto import configuration_auto

from .classification import SequenceClassifier

_NAMES: dict[str, str] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]  # of configurations
_ENDINGS = ("Config", "Model", "ForCausalLM", "ForSequenceClassification")


class FamilyClasses:
    """The classes of all families that one module makes.

    Args:
        module: its name.
        brand: what the names of classes begin with.
        kind: what the ``model_type`` of configurations begins with.
        decoder: changes a stock base model, whose layers are of ``_layer_class``.
        causal_lm: changes a stock causal LM, whose base model is a ``_base_class``.
    """

    def __init__(
        self,
        module: str,
        brand: str,
        kind: str,
        decoder: type[PreTrainedModel],
        causal_lm: type[PreTrainedModel],
    ) -> None:
        self._module, self._brand, self._kind = module, brand, kind
        self._decoder, self._causal_lm = decoder, causal_lm
        self._made: dict[str, Any] = {}

    def find(self, name: str) -> Any:
        """Returns a class by its name: the ``__getattr__`` of the module (PEP 562).

        Raises:
            AttributeError: the module makes no class of this name.
        """
        if name not in self._made:
            ending = next((each for each in _ENDINGS if name.endswith(each)), "")
            family = name.removeprefix(self._brand).removesuffix(ending)
            if name == f"{self._brand}{family}{ending}" and ending:
                self._make(family)
        if name not in self._made:
            raise AttributeError(f"module {self._module!r} has no attribute {name!r}")
        return self._made[name]

    def _make(self, family: str) -> None:
        """Makes the classes of a family, such as ``Llama``, if transformers has it."""
        types = [kind for kind, name in _NAMES.items() if name == f"{family}Config"]
        if not types:
            return
        stock_config = CONFIG_MAPPING[types[-1]]
        stock: Any = MODEL_MAPPING[stock_config]
        layer = getattr(sys.modules[stock.__module__], stock._no_split_modules[0])

        def make(ending: str, *bases: Any, **values: Any) -> Any:
            name = f"{self._brand}{family}{ending}"
            values |= {"__module__": self._module, "__doc__": f"A changed ``{family}{ending}``."}
            self._made[name] = type(name, bases, values)
            return self._made[name]

        kind = f"{self._kind}_{stock_config.model_type}"
        config = make("Config", stock_config, model_type=kind, _auto_class="AutoConfig")
        base = make("Model", self._decoder, stock, config_class=config, _layer_class=layer)
        whole = {"config_class": config, "_base_class": base}
        make("ForCausalLM", self._causal_lm, MODEL_FOR_CAUSAL_LM_MAPPING[stock_config], **whole)
        make("ForSequenceClassification", SequenceClassifier, stock.__base__, **whole)
