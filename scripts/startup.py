"""What a command does about the seconds in which it imports torch and transformers.

``--help`` goes without. The options are those of dataclasses in many modules, which import these
packages for what they do later. To print help nothing is done later, so that a stand-in for a heavy
package is enough. Other commands say on a terminal what they do, and end at once on Ctrl-C.
"""

import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from signal import SIG_DFL, SIGINT, default_int_handler, getsignal, signal
from types import ModuleType
from typing import Any

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "datasets", "stable_baselines3")


def begin() -> None:
    """Prepares the imports of a command; ``run_command`` takes back what must not last."""
    if getsignal(SIGINT) is default_int_handler:  # as end_at_once, which a script cannot import yet
        signal(SIGINT, SIG_DFL)
    # Only now, as it imports gymnasium.
    from pgprune.utils.command_line import on_terminal
    from pgprune.utils.process_ids import rank, world_size

    words = sys.argv[1:]
    options = set(words[: words.index("--")] if "--" in words else words)
    alone = world_size() == 1 and not set(HEAVY) & set(sys.modules)
    if alone and {"-h", "--help"} & options:  # the command prints its help and ends
        sys.meta_path.insert(0, _Finder())
    elif rank() == 0 and "--quiet" not in options:
        on_terminal("importing torch and transformers ...\r")


class _Nothing:
    """Stands for a class, function or value: can be called, indexed, joined and inherited from."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        # As a decorator it leaves a function as it is.
        alone = len(args) == 1 and not options and callable(args[0])
        return args[0] if alone and not isinstance(args[0], _Nothing) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __add__ = __radd__ = __mul__ = __rmul__ = __pow__ = __rpow__ = __or__

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


class _Module(ModuleType):
    """A stand-in for a package or module, whose every name is nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing()


class _Finder(MetaPathFinder, Loader):
    """Finds and makes the stand-ins."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        heavy = fullname.partition(".")[0] in HEAVY
        return ModuleSpec(fullname, self, is_package=True) if heavy else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Has nothing to run."""
