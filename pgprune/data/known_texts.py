"""Texts with a short name: C4 and WikiText-2, of the hub or of local files.

Each has a part to calibrate on (``train``) and another one to evaluate on (``test``). Where the
variable ``PGPRUNE_ASSETS`` names a folder that holds the file of a part, that file is read and no
network is needed; else the part is read from the hub.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgprune.utils.files import user_path

ASSETS = "PGPRUNE_ASSETS"
"""The variable of the environment that names the folder of local texts and tasks."""


@dataclass(frozen=True)
class KnownText:
    """Where the parts of a text are, each under ``train`` or ``test``.

    Attributes:
        hub: data sets, as name:config:split.
        files: local files below the folder ``PGPRUNE_ASSETS``.
        joined: parts whose rows are the lines of one document.
    """

    hub: Mapping[str, str]
    files: Mapping[str, str]
    joined: frozenset[str] = field(default=frozenset())

    def file(self, part: str) -> Path | None:
        """Returns the local file of a part, or None where there is none."""
        folder = assets()
        path = folder / self.files[part] if folder and part in self.files else None
        return path if path and path.is_file() else None

    def lacking(self, part: str) -> str:
        """Says that there is no local file of a part."""
        if part not in self.files:
            return f"{ASSETS} is not for this part of it"
        return f"{ASSETS} names no folder with {self.files[part]}"


KNOWN_TEXTS: Mapping[str, KnownText] = {
    "c4": KnownText(
        hub={"train": "allenai/c4:en:train", "test": "allenai/c4:en:validation"},
        files={"train": "text/c4/sample_c4-rp1.jsonl", "test": "text/c4/sample_c4-rp2.jsonl"},
    ),
    "wikitext2": KnownText(
        hub={
            "train": "Salesforce/wikitext:wikitext-2-raw-v1:train",
            "test": "Salesforce/wikitext:wikitext-2-raw-v1:test",
        },
        files={"test": "text/wikitext2-raw/wiki.test.txt"},
        joined=frozenset({"test"}),
    ),
}


def assets() -> Path | None:
    """Returns the folder of local texts and tasks, or None where none is named."""
    folder = os.environ.get(ASSETS)
    return user_path(folder) if folder else None
