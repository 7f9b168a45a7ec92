"""All settings of a command in one place: from the command line, to config.yaml and back."""

import argparse
from dataclasses import fields
from typing import Any, ClassVar, Self

from pgprune.cli import ArgumentParser, Config, from_arguments
from pgprune.run import Run


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
