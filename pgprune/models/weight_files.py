"""Checks that the weights of a model are complete in its directory, without reading them."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from pgprune.errors import PruningError, first_line
from pgprune.models.source import Source
from pgprune.utils.manifest import Manifest
from pgprune.utils.progress import phase


def check_export(source: Source) -> None:
    """Compares an exported model with its manifest, if it has one; of GGUF files, the one used.

    Raises:
        PruningError: a file is missing, damaged or changed.
    """
    folder = Path(source.place)
    manifest = Manifest.read(folder) if folder.is_dir() else None
    if manifest is not None:
        # Files that quantizing has made of an exported one are not of the export.
        names = set(manifest.digests)
        with phase(f"comparing {source} with its manifest"):
            manifest.check(names if source.gguf_file is None else names & {source.gguf_file})


def check_weights(directory: Path) -> None:
    """Checks that a model's directory holds all its weights in whole safetensors files.

    Raises:
        PruningError: a file is missing, cut short or a pickle, or the index is unreadable.
    """
    index = directory / "model.safetensors.index.json"
    files = [directory / "model.safetensors"]
    if not files[0].exists() and index.exists():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PruningError(f"the weight index {str(index)!r} is corrupted") from None
        files = [directory / name for name in sorted(set(names))]  # many weights share a shard
    for file in files:
        if file.exists():
            continue
        if any(directory.glob("*.bin")):
            raise PruningError(
                f"the model {str(directory)!r} has its weights in a pickle (.bin), which is not "
                "loaded because it can run code; convert it to safetensors with transformers' "
                "save_pretrained"
            )
        raise PruningError(f"the model {str(directory)!r} has no weights: {file.name} is missing")
    for file in files:
        try:
            with safe_open(file, framework="pt"):  # compares the header with the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise PruningError(
                f"the weights {str(file)!r} are truncated or corrupted ({first_line(error)}); copy "
                "or download them again"
            ) from error
