"""Reads text that every machine has: the running Python's own sources and language reference.

Nothing is copied into this repository. ``code`` is the standard library's modules, one document
each; ``prose`` is the language reference that ``help()`` shows, one document per topic. A hash of
a document's name alone decides whether it is held out, so that a model trained with one Python is
not evaluated on its own training text with another.
"""

import hashlib
import re
import sysconfig
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Literal

from pgprune.errors import PruningError

Domain = Literal["code", "prose"]
Split = Literal["train", "heldout"]

# hash % modulus == residue: a third of the prose's bytes and a sixth of the code's.
_HELD_OUT = {"code": (8, 6), "prose": (4, 1)}

# Not in every installation (tests, site-packages), tables rather than code (encodings), near-copies
# of other modules (pgen2 holds a tokenize.py), or the prose itself (pydoc_data).
_SKIPPED_DIRECTORIES = frozenset(
    "site-packages dist-packages lib-dynload __pycache__ "
    "test tests idle_test turtledemo encodings _bundled pgen2 pydoc_data".split()
)
_SKIPPED_PREFIXES = ("_sysconfigdata", "_sysconfig_vars", "config-")


def module_family(name: str) -> str:
    """Returns a top-level module's public name in every Python, ``re`` for ``sre_parse``."""
    if name.startswith("sre_"):
        return "re"
    if name.startswith("_collections"):
        return "collections"
    # Versions of Python have datetime in _pydatetime, _datetime or datetime itself.
    return re.sub(r"^_+(py_?)?", "", name).strip("_") or name


def is_held_out(domain: Domain, name: str) -> bool:
    """Tells if a document is kept from training, by its top-level module or the topic's name."""
    modulus, residue = _HELD_OUT[domain]
    family = module_family(name) if domain == "code" else name
    return int(hashlib.sha256(family.encode()).hexdigest(), 16) % modulus == residue


def paragraph_key(paragraph: str) -> str:
    """Returns a paragraph's words, which do not depend on its line breaks and indentation."""
    return " ".join(paragraph.split())


def split_paragraphs(text: str) -> list[str]:
    """Splits a text at blank lines."""
    return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def builtin_documents(domain: Domain, split: Split) -> list[str]:
    """Reads one part of the built-in text, in a fixed order.

    Args:
        domain: ``code``, the standard library's sources, or ``prose``, the language reference.
        split: ``train``, or ``heldout`` for what the built-in model has never seen.

    Raises:
        PruningError: If this Python was installed without that text.
    """
    if domain not in _HELD_OUT or split not in ("train", "heldout"):
        raise PruningError(
            f"no built-in text {domain!r}/{split!r}: choose code or prose, and train or heldout"
        )
    documents = _code_documents() if domain == "code" else _prose_documents()
    return [text for name, text in documents if is_held_out(domain, name) == (split == "heldout")]


@cache
def _code_documents() -> tuple[tuple[str, str], ...]:
    """Reads (top-level module, source) of every kept file of the standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = ((path.relative_to(root).parts[0], _read(path)) for path in _sources(root))
    documents = tuple((name.removesuffix(".py"), text) for name, text in texts if text.strip())
    for held_out in (False, True):
        # Some installations have compiled files only.
        if not any(is_held_out("code", name) == held_out for name, _ in documents):
            raise PruningError(
                f"this Python has no library sources under {root}: name your own texts instead"
            )
    return documents


def _sources(directory: Path) -> Iterator[Path]:
    """Finds the kept .py files below a directory, in the order of their names."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.suffix == ".py" and not path.name.startswith(_SKIPPED_PREFIXES):
            yield path
        elif path.name not in _SKIPPED_DIRECTORIES and not path.name.startswith(_SKIPPED_PREFIXES):
            yield from _sources(path)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""  # unreadable sources are skipped


@cache
def _prose_documents() -> tuple[tuple[str, str], ...]:
    """Reads (topic, text) of the language reference, without paragraphs that both splits have."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise PruningError(
            "this Python lacks pydoc_data, the language reference: name your own texts instead"
        ) from error
    paragraphs = {name: split_paragraphs(topics[name]) for name in sorted(topics)}
    # Topics repeat paragraphs. One that both splits have would be known from training.
    shared = _keys(paragraphs, held_out=False) & _keys(paragraphs, held_out=True)
    kept = {
        name: "\n\n".join(paragraph for paragraph in text if paragraph_key(paragraph) not in shared)
        for name, text in paragraphs.items()
    }
    return tuple((name, text + "\n") for name, text in kept.items() if text)


def _keys(paragraphs: dict[str, list[str]], held_out: bool) -> set[str]:
    texts: Iterable[list[str]] = (
        text for name, text in paragraphs.items() if is_held_out("prose", name) == held_out
    )
    return {paragraph_key(paragraph) for text in texts for paragraph in text}
