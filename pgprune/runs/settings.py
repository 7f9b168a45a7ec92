"""What every command that leaves a run is asked: the seed, and what becomes of the run."""

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

from pgprune.runs.run import Run
from pgprune.utils.command_line import ArgumentParser, from_arguments
from pgprune.utils.options import Config, option

FORMATS = ("hf", "masked", "gguf")
"""Formats of an export; pgprune.export.writers has what writes each."""


@dataclass(frozen=True)
class RunConfig(Config):
    """Run: where the results go, and what is made of them."""

    seed: int = option(0, "seed of everything random", minimum=0)
    output: str | None = option(None, "directory of the new run", unset="a name in runs/")
    export: str | None = option(
        None,
        "also write the pruned model, as scripts/export.py does by default, into a "
        "folder of that name in the run",
        choices=list(FORMATS),
        unset="no export",
    )
    quiet: bool = option(False, "print nothing but errors")

    def name(self, method: str, model: str, prune_rate: float) -> str:
        """What a run is called that is not given a directory.

        Args:
            method: or agent.
            model: ``builtin``, a hub id or a directory.
            prune_rate: as asked.
        """
        return f"{method}-{Path(model).name}-{prune_rate:g}-seed{self.seed}"


class Sections:
    """Base of a frozen dataclass with one config for each concern, all with defaults.

    The fields' names are the sections of config.yaml. What ``later`` names is absent in runs of
    earlier versions, which did what its defaults say.
    """

    later: ClassVar[tuple[str, ...]] = ("repair",)

    @classmethod
    def configs(cls) -> dict[str, Any]:
        """The dataclass of each section."""
        return {field.name: type(field.default) for field in fields(cls)}  # type: ignore[arg-type]

    @classmethod
    def add_to(cls, parser: ArgumentParser) -> None:
        """Adds every setting to a command's options."""
        for config in cls.configs().values():
            parser.add(config)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """The settings of a new run, from parsed options."""
        return cls(
            **{name: from_arguments(config, arguments) for name, config in cls.configs().items()}
        )

    @classmethod
    def from_run(cls, run: Run) -> Self:
        """The settings that a run was started with.

        Raises:
            PruningError: its config.yaml lacks a section or holds a wrong value.
        """
        absent = [name for name in cls.later if name not in run.sections]
        return cls(
            **{
                name: run.config(name, config)
                for name, config in cls.configs().items()
                if name not in absent
            }
        )

    def sections(self, decided: dict[str, Any]) -> dict[str, Config | dict[str, Any]]:
        """The sections of config.yaml; ``decided`` holds what was chosen from the settings."""
        return {name: getattr(self, name) for name in self.configs()} | {"decided": decided}
