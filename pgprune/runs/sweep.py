"""The directory of a sweep: finished runs at several prune rates, and what they have in common."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pgprune.errors import PruningError
from pgprune.runs.files import RunFile
from pgprune.runs.run import Run
from pgprune.utils.files import read_text, write_file
from pgprune.utils.jsonl import finite, parse_json
from pgprune.utils.manifest import Manifest, files_below
from pgprune.utils.options import Config, option


class Sweep(Run):
    """A sweep's directory; its runs are in it, named by their rates: DIR/0.1, DIR/0.2.

    It is made and opened as a run is, and has its settings in sweep.yaml.
    """

    settings_file = RunFile.SWEEP

    @property
    def rates(self) -> tuple[float, ...]:
        """The prune rates, rising."""
        return tuple(self.sections.get("sweep", {}).get("prune_rates") or ())

    @property
    def results(self) -> dict[str, Any]:
        """What sweep.json holds; nothing where it is not written yet.

        Raises:
            PruningError: it is damaged.
        """
        path = self.path / RunFile.SWEEP_RESULTS
        if not path.exists():
            return {}
        try:
            found = parse_json(read_text(path))
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise PruningError(f"{path} is damaged; delete it and --resume {self.path}")
        return found

    @property
    def finished(self) -> bool:
        """Whether all its runs are finished."""
        return bool(self.results.get("completed", False))

    def path_at(self, rate: float) -> Path:
        """Returns where the run of a rate is, or will be."""
        return self.path / str(rate)

    def existing(self) -> list[float]:
        """Returns the rates whose runs have begun."""
        return [rate for rate in self.rates if self.path_at(rate).is_dir()]

    def runs(self) -> list[Path]:
        """Returns the directories of the runs that have begun."""
        return [self.path_at(rate) for rate in self.existing()]

    def write(self, results: Mapping[str, Any]) -> None:
        """Writes sweep.json; of a completed sweep also the manifest of the files beside its runs.

        Raises:
            PruningError: the disk is full or refuses.
        """
        text = json.dumps(finite(dict(results)), indent=2, allow_nan=False) + "\n"
        with self.saving():
            write_file(self.path / RunFile.SWEEP_RESULTS, text.encode())
            if results.get("completed"):
                names = (RunFile.SWEEP, RunFile.COMMAND, RunFile.VERSIONS, RunFile.CANDIDATES)
                files = [self.path / name for name in (*names, RunFile.SWEEP_RESULTS)]
                Manifest.write(self.path, files + files_below(self.path / RunFile.PLOTS))


@dataclass(frozen=True)
class AtConfig(Config):
    """Sweep: which of its runs."""

    at: float | None = option(
        None, "of a sweep: the run at this prune rate", above=0, below=1, unset="none, RUN is a run"
    )


def is_sweep(path: Path) -> bool:
    """Whether a directory is that of a sweep."""
    return (path / RunFile.SWEEP).is_file()


def run_at_rate(source: str, rate: float | None) -> str:
    """Returns the run that a source and ``--at`` name: a sweep's at a rate, else the source itself.

    Raises:
        PruningError: a sweep without a rate or without a run at it, or a rate of what is no sweep.
    """
    path = Path(source)
    if not is_sweep(path):
        if rate is not None:
            raise PruningError(f"--at {rate:g} is about sweeps, and {source} is none; leave it out")
        return source
    sweep = Sweep.open(path)
    if rate not in sweep.existing():
        raise PruningError(_choose(sweep, rate))
    return str(sweep.path_at(rate))


def _choose(sweep: Sweep, rate: float | None) -> str:
    """Says which runs of a sweep there are."""
    there = ", ".join(map(str, sweep.existing())) or "none yet"
    if rate is None:
        return (
            f"{sweep.path} is a sweep with runs at several rates ({there}); give {sweep.path}/RATE"
        )
    return f"the sweep {sweep.path} has no run at {rate:g}; those that are there: {there}"
