"""Strategies for content that no honest program writes: of files, of settings, of options."""

import json
from collections.abc import Sequence

from hypothesis import strategies as st

from pgprune.errors import PruningError

NASTY = ["\x1b]0;title\x07", "\0", "\u202e", "\ud800", "~nobody", "../..", "**", "[red]", "é" * 300]
"""Texts that steer a terminal, end a C string, leave a folder or fit no file name."""

numbers = (
    st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**30, 10**400])
    | st.floats()
    | st.booleans()
)
texts = st.text(max_size=20) | st.sampled_from(NASTY)
scalars = st.none() | numbers | texts


def json_values(keys: Sequence[str]) -> st.SearchStrategy[object]:
    """Values of JSON, whose objects often have the keys that a reader looks for."""
    names = st.sampled_from(keys) | texts
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=5),
        max_leaves=12,
    )


def json_files(keys: Sequence[str], lines: bool = False) -> st.SearchStrategy[bytes]:
    """Files of JSON, or of a value a line: whole, damaged, or nested thousands of levels deep."""
    value = json_values(keys).map(lambda value: json.dumps(value).encode())
    whole = st.lists(value, max_size=4).map(b"\n".join) if lines else value
    key = keys[0].encode()
    deep = st.sampled_from([b'{"%s":' % key * 5000, b"[" * 5000 + b"]" * 5000, b"9" * 5000])
    return whole | damaged(whole) | deep | st.binary(max_size=60)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Content of which a part is overwritten, inserted or cut off."""
    content = draw(whole)
    start = draw(st.integers(0, len(content)))
    end = draw(st.sampled_from([start, start + 1, start + 8, len(content)]))
    return content[:start] + draw(st.binary(max_size=9)) + content[end:]


def one_sentence(error: PruningError) -> None:
    """Checks that an error can stand on a line: short, and not empty."""
    assert 10 < len(" ".join(str(error).split())) < 1500, str(error)
