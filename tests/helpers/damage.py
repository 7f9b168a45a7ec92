"""Damage to files, for tests of what reads them: a sentence, or the right answer."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pgprune import PruningError


def damaged(path: Path, times: int, seed: int = 0) -> Iterator[str]:
    """Damages a file again and again, a little or a lot, and puts it back; yields how."""
    whole, chance = path.read_bytes(), random.Random(seed)
    for number in range(times):
        content, place = bytearray(whole), chance.randrange(len(whole))
        how = ["bit", "bytes", "zeros", "cut", "longer", "swapped", "gone"][number % 7]
        if how == "bit":
            content[place] ^= 1 << chance.randrange(8)
        elif how == "bytes":
            content[place : place + 8] = chance.randbytes(8)
        elif how == "zeros":
            content[place:] = bytes(len(whole) - place)
        elif how == "cut":
            del content[place:]
        elif how == "longer":
            content += chance.randbytes(1 + place % 100)
        elif how == "swapped":
            content.reverse()
        path.write_bytes(content)
        if how == "gone":
            path.unlink()
        yield how
    path.write_bytes(whole)


def refused_or_same(read: Callable[[], Any], right: Any) -> bool:
    """Reads: True for a sentence, False for the right answer; anything else fails."""
    try:
        assert read() == right, "another answer without a word"
    except PruningError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
        return True
    return False
