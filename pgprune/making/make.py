"""Makes a smaller model, stage by stage: search, recovery, export, evaluation.

Each stage has a directory of its own below that of the whole, which appears complete or can be
resumed by the stage itself. So what is there says what is left to do.
"""

import gc
import os
import shlex
import shutil
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Self

from pgprune.agents.training.loaded import Loaded
from pgprune.agents.training.settings import resumed
from pgprune.agents.training.train import Training
from pgprune.errors import PruningError
from pgprune.export.export import ExportConfig, check_format, export
from pgprune.losses.windows import model_losses
from pgprune.making.card import write_cards
from pgprune.making.config import MakeConfig, search_settings
from pgprune.making.forecast import Forecast
from pgprune.making.recovery import recover, trained
from pgprune.making.state import State
from pgprune.making.table import RECOVERED, SEARCH
from pgprune.runs.any_model import load_any
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.lock import locked
from pgprune.runs.results import measured
from pgprune.runs.run import Run
from pgprune.utils.files import check_new, new_directory, saving
from pgprune.utils.memory import within_memory
from pgprune.utils.progress import note, phase

_LINKED = 2**20  # bytes, from which a file is linked and not copied


class Plan:
    """What is to be made, checked and measured; nothing is written yet.

    Args:
        model: to make smaller.
        config: of the whole.
        arguments: parsed options of the command.

    Attributes:
        config: of the whole.
        settings: of the search.
        loaded: model and text of the search.
        forecast: what was measured.

    Raises:
        PruningError: anything that cannot work.
    """

    def __init__(self, model: str, config: MakeConfig, arguments: Namespace) -> None:
        if config.output is None and not config.dry_run:
            raise PruningError("there is no place for the model; give --output DIR")
        if config.output is not None:
            check_new(Path(config.output), _remedy(Path(config.output)))
        self.config = config
        self.settings = search_settings(model, config, arguments)
        with within_memory():
            self.loaded = Loaded(self.settings)
            check_formats(self.loaded, config)
            self.forecast = Forecast.of(self.loaded)
        if config.recovery_minutes is not None:
            weights = self.forecast.parameters * self.forecast.itemsize
            trained(self.forecast, self.loaded.problem.lm.device, weights)  # refuses


class Make:
    """A directory in which a model is made; ``run`` does what is left to do.

    Attributes:
        path: the directory.
        state: what its make.json holds.
    """

    def __init__(self, path: Path, state: State, loaded: Loaded | None = None) -> None:
        self.path, self.state = path, state
        self._loaded = loaded

    @classmethod
    def create(cls, plan: Plan, command: Sequence[str]) -> Self:
        """Makes the directory of a plan, whose loaded model the search takes over.

        Raises:
            PruningError: it exists by now, or cannot be made.
        """
        path = Path(str(plan.config.output))
        state = State.create(path, plan.config, plan.settings, plan.forecast, command)
        return cls(path, state, plan.loaded)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens a directory, finished or not.

        Raises:
            PruningError: it is none, or damaged.
        """
        return cls(path, State.open(path))

    def run(self) -> bool:
        """Does the stages that are left, one after another.

        Returns:
            Whether all are done; not after Ctrl-C, which ends the search or the recovery early.

        Raises:
            PruningError: a stage cannot be done, or another process is at it.
            KeyboardInterrupt: Ctrl-C between these.
        """
        stages: list[Callable[[], bool]] = [self._search]
        if self.state.config.recovery_minutes is not None:
            stages.append(self._recover)
        stages += [partial(self._export, name) for name in self.state.config.formats]
        stages.append(self._evaluate)
        with locked(self.path / ".lock", self.path):
            for stage in stages:
                completed = stage()
                gc.collect()  # the model of a stage is gone before the next one loads its own
                write_cards(self.path, self.state)
                if not completed:
                    return False
        return True

    def _search(self) -> bool:
        """Searches a mask and weights, or the rest of it."""
        folder, loaded = self.path / SEARCH, self._loaded
        self._loaded = None
        run = Run.open(folder) if (folder / RunFile.CONFIG).is_file() else None
        if run is not None and run.finished:
            return _done("search", folder)
        settings = self.state.search if run is None else resumed(run)
        with within_memory():
            loaded = loaded or Loaded(settings)
            check_formats(loaded, self.state.config)
            if run is None:
                sections, words = (
                    settings.sections(loaded.decided()),
                    shlex.split(self.state.command),
                )
                run = Run.create(str(folder), sections, words, settings.name)
            loaded.check(run)
            with run:
                return bool(Training(loaded).run(run)["completed"])

    def _recover(self) -> bool:
        """Lets the dense model teach the pruned one."""
        output = self.path / RECOVERED
        if output.is_dir():
            return _done("recovery", output)
        return recover(self.path / SEARCH, output, self.state, partial(self.state.write, self.path))

    def _export(self, name: str) -> bool:
        """Writes the model in a format."""
        output, recovered = self.path / name, self.path / RECOVERED
        if output.is_dir():
            return _done(f"export {name}", output)
        if name != "hf" or not recovered.is_dir():
            weights = str(recovered) if recovered.is_dir() else None
            export(self._run(), ExportConfig(format=name, output=str(output), weights=weights))
            return True
        with saving(output), phase(f"writing {output}"), new_directory(output) as made:
            for file in sorted(recovered.iterdir()):
                _take(file, made / file.name)
        return True

    def _evaluate(self) -> bool:
        """Measures the perplexity of what was written, on the windows of the search."""
        if "evaluation" in self.state.stages:
            return True
        if "hf" not in self.state.config.formats:
            note("perplexity of a llama.cpp file is not measured here")
            return True
        asked = self.state.search.model
        loaded = load_any(str(self.path / "hf"), device=asked.device, dtype=asked.dtype)
        windows = self._run().evaluation_windows(loaded.tokenizer)
        found = measured(partial(model_losses, loaded.model), ["exported"], windows)
        self.state.stages["evaluation"] = {
            "parameters": loaded.parameters,
            "perplexity": found.values["exported"],
            "standard_error": found.errors["exported"],
        }
        self.state.write(self.path)
        return True

    def _run(self) -> FinishedRun:
        return FinishedRun.open(self.path / SEARCH)


def check_formats(loaded: Loaded, config: MakeConfig) -> None:
    """Refuses formats that cannot hold what will be made, before any long work.

    Raises:
        PruningError: one cannot.
    """
    settings, problem = loaded.settings, loaded.problem
    for name in config.formats:
        repair, scope = settings.repair.repair, settings.pruning.scope
        check_format(name, problem.lm, problem.tokenizer, repair, scope, settings.model)


def _done(stage: str, folder: Path) -> bool:
    note(f"{stage} is done: {folder}")
    return True


def _take(file: Path, to: Path) -> None:
    """Brings a file of the recovery to its place without using the disk twice."""
    if file.stat().st_size >= _LINKED:
        try:
            os.link(file, to)
            return
        except OSError:  # a file system without links
            pass
    shutil.copyfile(file, to)


def _remedy(path: Path) -> str:
    again = (
        f", or resume with pgprune make --resume {path}" if (path / "make.json").is_file() else ""
    )
    return f"choose another --output{again}"
