"""Options of every command that leaves a run, and the sections of its config.yaml."""

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from pgprune.runs.run import Run
from pgprune.utils.command_line import ArgumentParser, from_arguments
from pgprune.utils.options import SEEDS, Config, option

FORMATS = ("hf", "masked", "gguf")
"""Formats of an export; pgprune.export.writers has what writes each."""


@dataclass(frozen=True)
class RunConfig(Config):
    """Run: where the results go."""

    seed: int = option(0, "seed of all random numbers", minimum=0, maximum=SEEDS)
    output: str | None = option(
        None, "directory of the new run", unset="a name in runs/", metavar="DIR"
    )
    export: str | None = option(
        None,
        "also write the pruned model, as pgprune export does",
        choices=list(FORMATS),
        unset="no export",
        metavar="FORMAT",
    )
    quiet: bool = option(False, "print only errors")

    def name(self, method: str, model: str, amount: str) -> str:
        """Names a run without a directory: its method or agent, model, prune rate and seed."""
        return f"{method}-{Path(model).name}-{amount}-seed{self.seed}"


class Sections:
    """Base of a frozen dataclass with one config for each concern, all with defaults.

    The fields' names are the sections of config.yaml.
    """

    @classmethod
    def configs(cls) -> dict[str, type[Config]]:
        """Returns the class of each section."""
        found = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
        return {name: type(config) for name, config in found.items() if isinstance(config, Config)}

    @classmethod
    def later(cls) -> Collection[str]:
        """Sections that runs of earlier versions lack, which did what the defaults say."""
        return ("repair",)

    @classmethod
    def of(cls, sections: Mapping[str, Any]) -> Self:
        """Makes settings of sections by name; an absent one has its defaults."""
        return cls(**sections)

    @classmethod
    def add_to(cls, parser: ArgumentParser) -> None:
        """Adds every setting to a command's options."""
        for config in cls.configs().values():
            parser.add(config)

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Reads the settings of a new run from parsed options, with absolute paths."""
        configs = cls.configs().items()
        return cls.of(
            {name: from_arguments(config, arguments).absolute() for name, config in configs}
        )

    @classmethod
    def from_run(cls, run: Run) -> Self:
        """Reads the settings that a run was started with.

        Raises:
            PruningError: its config.yaml lacks a section or holds a wrong value.
        """
        # Earlier versions wrote fewer sections, and did what the defaults of these say.
        absent = [name for name in cls.later() if name not in run.sections]
        configs = cls.configs().items()
        return cls.of({n: run.config(n, config) for n, config in configs if n not in absent})

    def section(self, name: str) -> Any:
        """Returns the config of a section."""
        return getattr(self, name)

    def sections(self, decided: dict[str, Any]) -> dict[str, Config | dict[str, Any]]:
        """Returns the sections of config.yaml, with what was ``decided`` from the settings."""
        return {name: self.section(name) for name in self.configs()} | {"decided": decided}
