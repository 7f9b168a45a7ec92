"""Registers pruned models with transformers, so that they load without ``trust_remote_code``.

One situation needs the import hook below: a script imports pgprune before transformers' automatic
classes and then calls ``AutoModelForCausalLM.from_pretrained`` on an export. Registration needs
transformers' classes, whose import takes seconds and loads torch, which ``import pgprune`` must not
do. So a hook on ``sys.meta_path`` waits for the import of those classes, registers, and is gone. If
they are imported already, there is no hook.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

CODE = "modeling_pgprune"
"""The module of ``pgprune.hub_code`` that is copied into exported models."""

PREFIXES = {
    "llama": "PGPruneLlama",
    "mistral": "PGPruneMistral",
    "qwen2": "PGPruneQwen2",
    "qwen3": "PGPruneQwen3",
    "opt": "PGPruneOPT",
}
"""Prefix of the names of a family's classes in that module, by its ``model_type``."""

SLICED_CODE = "modeling_slicegpt"
"""The module of ``pgprune.hub_code`` that is copied into sliced models."""

_TRIGGER = "transformers.models.auto.modeling_auto"


class PrunedClasses(NamedTuple):
    """The classes of one family of pruned models."""

    config: Any
    model: Any
    causal_lm: Any

    @property
    def auto_map(self) -> dict[str, str]:
        """The configuration value by which transformers finds the classes beside the weights."""
        autos = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
        file = self.config.__module__.rpartition(".")[2]
        return {auto: f"{file}.{kind.__name__}" for auto, kind in zip(autos, self, strict=True)}


def pruned_classes(model_type: str) -> PrunedClasses:
    """Returns the classes of pruned models of a family.

    Args:
        model_type: of the dense model, a key of ``PREFIXES``.
    """
    return _classes(CODE, PREFIXES[model_type])


def sliced_classes(model_type: str) -> PrunedClasses:
    """Returns the classes of sliced models of a family.

    Args:
        model_type: of the dense model, a key of ``PREFIXES``.
    """
    return _classes(SLICED_CODE, PREFIXES[model_type].replace("PGPrune", "SliceGPT"))


def _classes(file: str, prefix: str) -> PrunedClasses:
    code = importlib.import_module(f"pgprune.hub_code.{file}")
    names = (prefix + ending for ending in ("Config", "Model", "ForCausalLM"))
    return PrunedClasses(*(getattr(code, name) for name in names))


def register() -> None:
    """Registers the classes of all families with transformers' automatic classes."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    # exist_ok: an export that is loaded with remote code registers the same names.
    for classes in (*map(pruned_classes, PREFIXES), *map(sliced_classes, PREFIXES)):
        AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
        AutoModel.register(classes.config, classes.model, exist_ok=True)
        AutoModelForCausalLM.register(classes.config, classes.causal_lm, exist_ok=True)


def register_with_transformers() -> None:
    """Registers now if transformers' automatic classes are imported, else after their import."""
    if _TRIGGER in sys.modules:  # transformers is imported already
        register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module of the automatic classes once, with a loader that registers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TRIGGER:
            return None
        sys.meta_path.remove(self)  # before find_spec, which would ask this finder again
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # wraps the real loader
        return spec


class _Loader(importlib.abc.Loader):
    """Executes the module of the automatic classes, then registers."""

    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        register()
