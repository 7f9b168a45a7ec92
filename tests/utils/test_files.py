"""Paths that users type."""

import pytest

from pgprune import PruningError
from pgprune.utils.files import user_path


def test_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"


@pytest.mark.parametrize("text", ["~nobody-of-this-name/a", "a" * 300, "~\0", "~\ud800"])
def test_what_cannot_be_a_path_is_one_sentence(text):
    with pytest.raises(PruningError, match="cannot be used"):
        user_path(text)
