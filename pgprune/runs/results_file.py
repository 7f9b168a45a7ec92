"""Reads results.json, once it and config.yaml are shown to be what the run wrote."""

from functools import cache
from pathlib import Path
from typing import Any

from pgprune.errors import PruningError, first_line
from pgprune.runs.files import RunFile
from pgprune.utils.jsonl import parse_json
from pgprune.utils.manifest import MANIFEST, Manifest
from pgprune.utils.progress import note

_NEEDED = (
    *("model", "granularity", "budget", "seed", "versions", "mask_evaluations", "tokens"),
    *("seconds", "prune_rate.requested", "prune_rate.achieved", "parameters.dense"),
    *("parameters.pruned", "evaluation.sequence_length", "evaluation.bos"),
    *("perplexity.dense", "perplexity.pruned"),
)


def read_results(run: Path) -> dict[str, Any] | None:
    """Reads the results of a run, those of an interrupted one included.

    Results of versions that wrote no manifest are taken as they are, with a note, if they are
    complete.

    Args:
        run: its directory.

    Returns:
        The content of results.json; None where a run has not yet written all that it writes.

    Raises:
        PruningError: it or the configuration is damaged, changed or incomplete.
    """
    path, manifest = run / RunFile.RESULTS, Manifest.read(run)
    if not path.exists():
        return None
    if manifest is not None:
        manifest.check([RunFile.RESULTS, RunFile.CONFIG])
    try:
        results = parse_json(path.read_bytes())
        if not isinstance(results, dict):
            raise ValueError("no table of results")
        if manifest is None and "manifest" in results:  # killed before it was written
            return None
        if manifest is None:
            _check_complete(results)
            _note_without(run)
        return results
    except (OSError, ValueError) as error:
        raise PruningError(
            f"{path} is damaged ({first_line(error)}); restore it from a copy"
        ) from error


@cache
def _note_without(run: Path) -> None:
    """Says once that nothing proves what the files of a run hold."""
    note(f"{run} is of a version that wrote no {MANIFEST}, so damage cannot be seen")


def _check_complete(results: dict[str, Any]) -> None:
    for name in _NEEDED:
        value: Any = results
        for key in name.split("."):
            if not isinstance(value, dict) or key not in value:
                raise ValueError(f"it lacks {name}")
            value = value[key]
