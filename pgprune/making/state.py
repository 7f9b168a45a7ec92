"""Keeps what a make is: its settings, what was measured, and which stages are done."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pgprune.agents.training.settings import Settings
from pgprune.errors import PruningError
from pgprune.making.config import MakeConfig
from pgprune.making.forecast import Forecast
from pgprune.runs.versions import versions
from pgprune.utils.files import make_directory, read_text, saving, write_file
from pgprune.utils.jsonl import finite, parse_json
from pgprune.utils.options import from_dict, to_dict

STATE = "make.json"
"""The file of the directory that says all of it."""


@dataclass
class State:
    """The content of make.json.

    Attributes:
        config: what was asked for.
        search: settings of the search.
        forecast: what was measured before it began.
        command: that began it.
        begun: when.
        stages: what each stage that is done says of itself.
        versions: of the packages that began it.
    """

    config: MakeConfig
    search: Settings
    forecast: Forecast
    command: str
    begun: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=versions)

    @classmethod
    def create(
        cls,
        path: Path,
        config: MakeConfig,
        search: Settings,
        forecast: Forecast,
        command: Sequence[str],
    ) -> Self:
        """Makes the directory with its make.json, by one rename.

        Raises:
            PruningError: the directory exists by now, or cannot be made.
        """
        state = cls(config, search, forecast, shlex.join(command))
        with saving(path, " or choose another --output"):
            make_directory(path, {STATE: state._text()}, False, lambda _: None)
        return state

    @classmethod
    def open(cls, path: Path) -> Self:
        """Reads the make.json of a directory.

        Raises:
            PruningError: there is none, or it is damaged.
        """
        file = path / STATE
        if not file.is_file():
            raise PruningError(
                f"{path} is no directory of pgprune make: it has no {STATE}; give the --output of "
                "the command that was interrupted"
            )
        try:
            found = parse_json(read_text(file))
            asked = found["settings"]
            kinds = Settings.configs()
            sections = {
                name: from_dict(kinds[name], values, f"{file}, section {name!r}")
                for name, values in asked["search"].items()
            }
            return cls(
                from_dict(MakeConfig, asked["make"], f"{file}, section 'make'"),
                Settings.of(sections),
                Forecast(**found["forecast"]),
                *(found[name] for name in ("command", "begun", "stages", "versions")),
            )
        except PruningError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise PruningError(f"{file} is damaged ({error}); make the model again") from error

    def write(self, path: Path) -> None:
        """Replaces the make.json of a directory.

        Raises:
            PruningError: the disk is full or refuses.
        """
        with saving(path / STATE, ", then resume"):
            write_file(path / STATE, self._text().encode())

    def _text(self) -> str:
        search = {name: to_dict(self.search.section(name)) for name in self.search.configs()}
        content = {
            "command": self.command,
            "begun": self.begun,
            "settings": {"make": to_dict(self.config), "search": search},
            "forecast": asdict(self.forecast),
            "stages": self.stages,
            "versions": self.versions,
        }
        return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"
