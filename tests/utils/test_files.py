"""Paths that users type, and tensors as the content of files."""

import pytest
import torch
from safetensors.torch import load

from pgprune import PruningError
from pgprune.utils.files import tensor_bytes, user_path


def test_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"


@pytest.mark.parametrize("text", ["~nobody-of-this-name/a", "a" * 300, "~\0", "~\ud800"])
def test_what_cannot_be_a_path_is_one_sentence(text):
    with pytest.raises(PruningError, match="cannot be used|a home that is unknown"):
        user_path(text)


def test_tensors_and_metadata_have_one_content():
    tensors = {"mask": torch.tensor([1, 0, 1], dtype=torch.uint8), "scores": torch.rand(3)}
    metadata = {name: f"é\n{name}" for name in "hgfedcba"}
    (content,) = {tensor_bytes(tensors, metadata) for _ in range(8)}
    assert load(content).keys() == tensors.keys()
    assert all(bool((load(content)[name] == tensor).all()) for name, tensor in tensors.items())
    assert content.index(b'"a"') < content.index(b'"h"') < content.index(b'"scores"')
