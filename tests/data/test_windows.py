"""Windows of a mix: shares by weight, one state, and every part's own epochs."""

from itertools import product, repeat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_stream import BOS, TOKENIZER, letters_tokenizer
from transformers import Gemma3TextConfig

from pgprune import PruningError
from pgprune.data.calibration import open_calibration
from pgprune.data.stream import CalibrationStream, DataConfig, evaluation_windows
from pgprune.data.training_data import training_windows
from pgprune.data.windows import MixedWindows, TextWindows, interleave
from pgprune.masking.perplexity import bos_rule
from pgprune.models.vocabulary import begin_windows

LETTERS = "abc"


def text(letter: str, documents: int = 30, streamed: bool = False) -> TextWindows:
    """Documents of one letter: each is a window, which tells where it is from."""
    texts = [letter * 3] * documents
    return TextWindows((lambda: iter(texts)) if streamed else texts, TOKENIZER, 4, f"text {letter}")


def mix(*weights: float, documents: int = 30, streamed: bool = False) -> MixedWindows:
    parts = [text(letter, documents, streamed) for letter, _ in zip(LETTERS, weights, strict=False)]
    return MixedWindows(parts, weights, "the mix")


def shares(windows: torch.Tensor) -> list[int]:
    """How many windows are of each letter."""
    return torch.bincount(windows[:, 1], minlength=3).tolist()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 60))
def test_any_first_items_have_the_shares_of_the_weights(weights, n):
    taken = interleave([repeat(index) for index in range(len(weights))], weights)
    counts = [0] * len(weights)
    for _ in range(n):
        counts[next(taken)] += 1
    expected = [n * weight / sum(weights) for weight in weights]
    assert all(abs(a - b) < 1.5 for a, b in zip(counts, expected, strict=True))


@pytest.mark.parametrize("streamed", [False, True])
def test_every_batch_has_the_shares_of_the_weights(streamed):
    stream = CalibrationStream(mix(3, 1, streamed=streamed), batch_size=8)
    assert [shares(stream.next()) for _ in range(20)] == [[6, 2, 0]] * 20


def test_a_small_part_begins_again_while_a_large_one_goes_on():
    parts = [text("a", 100), text("b", 2)]
    stream = CalibrationStream(MixedWindows(parts, [1, 1], "the mix"), batch_size=4)
    assert shares(torch.cat([stream.next() for _ in range(9)])) == [18, 18, 0]


@pytest.mark.parametrize("samples", [None, 12])
def test_a_mix_is_sought_forked_and_reseeded_like_one_text(tmp_path, samples):
    for name in LETTERS:
        (tmp_path / f"{name}.txt").write_text(LETTERS * 40 + name * 40)
    source = ",".join(f"{tmp_path}/{name}.txt:{weight}" for weight, name in enumerate(LETTERS, 1))
    config = DataConfig(source, sequence_length=4, batch_size=3, calibration_samples=samples)
    stream, _ = open_calibration(config, TOKENIZER, seed=5)
    batches = [stream.next() for _ in range(20)]
    stream.seek(7)
    assert torch.equal(stream.next(), batches[7])
    again, _ = open_calibration(config, TOKENIZER, seed=5)
    again.seek(15)
    assert torch.equal(again.next(), batches[15])
    assert torch.equal(again.fork(5).next(), batches[0])
    again.reseed(6)
    assert not torch.equal(again.next(), batches[0])


def test_a_finite_set_has_the_shares_and_is_revisited():
    stream = CalibrationStream(mix(2, 1, 1), batch_size=4, samples=8)
    assert shares(stream.head(8)) == [4, 2, 2]
    epochs = torch.cat([stream.next() for _ in range(4)]).split(8)
    assert [shares(epoch) for epoch in epochs] == [[4, 2, 2]] * 2


def test_windows_that_validate_a_mix_are_mixed_by_the_same_weights(tmp_path):
    pairs = list(product("uvwxyz", repeat=4))  # documents differ, and are a window each
    for name in "ab":
        lines = "".join(f'{{"text": "{name}{"".join(pair)}"}}\n' for pair in pairs)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    config = DataConfig(f"{tmp_path}/a.jsonl:3,{tmp_path}/b.jsonl:1", sequence_length=6)
    stream, validation = open_calibration(config, TOKENIZER, seed=1)
    assert shares(stream.head(32))[:2] == shares(validation)[:2] == [24, 8]
    other_seed = open_calibration(config, TOKENIZER, seed=2)[1]
    assert torch.equal(validation, other_seed)


def test_a_mix_ends_where_a_part_has_no_more():
    parts = [text("a", 100), text("b", 2)]
    short = MixedWindows(parts, [1, 1], "the mix")
    assert len(short.first(0, 50)) == 5  # a, b, a, b, a
    with pytest.raises(PruningError, match="the mix has only 5 windows of 4 tokens.* 50 "):
        CalibrationStream(short, 1).head(50)


def test_a_part_without_a_window_is_named(tmp_path):
    (tmp_path / "long.txt").write_text("abc" * 20)
    (tmp_path / "short.txt").write_text("ab")
    config = DataConfig(f"{tmp_path}/long.txt:1,{tmp_path}/short.txt:2", sequence_length=4)
    with pytest.raises(PruningError, match=r"part .*short\.txt:2' .*shorter than two windows"):
        open_calibration(config, TOKENIZER)


def test_every_window_begins_with_bos_where_the_model_needs_it(tmp_path):
    """In calibration, evaluation and finetuning alike; nothing of the text is lost."""
    tokenizer = letters_tokenizer(bos=False)
    (tmp_path / "text.txt").write_text("abcdefgh" * 160)
    path, names = str(tmp_path / "text.txt"), {"sequence_length": 5, "batch_size": 2}
    config = DataConfig(calibration=path, evaluation=path, **names)
    assert not (evaluation_windows(config, tokenizer)["text"][:, 0] == BOS).any()
    begin_windows(tokenizer, Gemma3TextConfig())
    (sets,) = evaluation_windows(config, tokenizer).values()
    stream, validation = open_calibration(config, tokenizer)
    training = training_windows(path, tokenizer, 5, 99)
    for windows in (sets, stream.next(), validation, training.ids):
        assert (windows[:, 0] == BOS).all()
        assert windows.shape[1] == 5 and not (windows[:, 1:] == BOS).any()
    assert not training.trained[:, 0].any() and training.trained[:, 1:].all()
    assert sets[:2, 1:].flatten().tolist() == list(range(8))
    assert bos_rule(tokenizer) == "one BOS per window"
