"""Checks that runs, exports and models are whole, unchanged and usable, for ``pgprune check``."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.inspection.gguf_files import gguf_parameters
from pgprune.models.weight_files import check_values
from pgprune.runs.any_model import is_run, load_any
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.runs.sweep import Sweep, is_sweep
from pgprune.utils.files import user_path
from pgprune.utils.manifest import MANIFEST, Manifest
from pgprune.utils.progress import phase

_TOKENS = 8  # of the text that a model is tried on


class Finding(NamedTuple):
    """What was looked at.

    Attributes:
        name: a file, or what was tried.
        said: what was found, or what is wrong.
        wrong: whether something is.
    """

    name: str
    said: str = ""
    wrong: bool = False


def findings(source: str) -> Iterator[Finding]:
    """Compares all digests, shapes and counts of a run or a model, loads it and tries it.

    Args:
        source: a run's directory, finished or not, or what ``load_any`` takes.

    Yields:
        A finding for each file and trial, of a run also for the exports in it.
    """
    path = user_path(source)
    if is_sweep(path):
        yield from _of_manifest(path)
        for run in map(str, Sweep.open(path).runs()):
            for found in findings(run):
                yield found._replace(name=f"{Path(run).name}/{found.name}")
        return
    if not is_run(path):
        yield from _of_model(source)
        return
    yield from _of_run(path)
    for folder in sorted(path.iterdir()):
        if (folder / "config.json").exists() or any(folder.glob("*.gguf")):
            for found in _of_model(str(folder)):
                yield found._replace(name=f"{folder.name}/{found.name}")


def _of_run(path: Path) -> Iterator[Finding]:
    yield from _of_manifest(path)
    for found in _of_manifest(path / RunFile.LEVELS):
        yield found._replace(name=f"{RunFile.LEVELS}/{found.name}")
    if (path / RunFile.CHECKPOINT).exists():
        yield _tried("checkpoint and log", lambda: _checkpoint(path))
    yield _tried("run", lambda: _run(path))


def _of_model(source: str) -> Iterator[Finding]:
    path = user_path(source)
    if path.is_dir():
        yield from _of_manifest(path)
        if not (path / "config.json").exists() and (files := sorted(path.glob("*.gguf"))):
            # Few of llama.cpp's architectures load here, but all count.
            for file in files:
                yield _tried(file.name, partial(_count, file))
            return
    yield _tried("model", lambda: _usable(load_any(source, device="cpu").model))


def _of_manifest(folder: Path) -> Iterator[Finding]:
    try:
        manifest = Manifest.read(folder)
    except PruningError as error:
        yield Finding(MANIFEST, str(error), wrong=True)
        return
    for name, fault in () if manifest is None else manifest.faults():
        yield Finding(name, fault or "as it was written", wrong=fault is not None)


def _tried(name: str, work: Callable[[], str]) -> Finding:
    try:
        with phase(f"checking {name}"):
            return Finding(name, work())
    except PruningError as error:
        return Finding(name, str(error), wrong=True)


def _checkpoint(path: Path) -> str:
    Run.open(path).read_checkpoint()
    return "whole, and of these settings"


def _run(path: Path) -> str:
    if not Run.open(path).finished and not (path / MANIFEST).exists():
        return "not finished"
    run = FinishedRun.open(path)
    loaded, counts = run.load(), run.results["parameters"]
    dense = sum(parameter.numel() for parameter in loaded.model.parameters())
    masked = dense - loaded.units.pruned_parameters(loaded.mask)
    _same("dense model", dense, counts["dense"])
    _same("mask", masked, counts.get("masked", masked))
    model = loaded.pruned()
    _same("pruned model", sum(one.numel() for one in model.parameters()), counts["pruned"])
    return _usable(model)


def _count(file: Path) -> str:
    return f"{gguf_parameters(file):,} parameters"


def _same(what: str, found: int, told: int) -> None:
    if found != told:
        raise PruningError(
            f"the {what} has {found:,} parameters, but {RunFile.RESULTS} says {told:,}; prune again"
        )


def _usable(model: PreTrainedModel) -> str:
    """Tries a model; says how many parameters it has."""
    check_values("pruned model", model)
    ids = torch.arange(_TOKENS)[None] % model.config.vocab_size  # (1, T)
    with torch.no_grad():
        logits = model(ids).logits  # (1, T, V)
    if not bool(logits.isfinite().all()):
        raise PruningError("the logits are not finite numbers; choose a wider dtype, or restore it")
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{count:,} parameters, loads and computes"
