"""The calibration text in two parts: what is trained on, and what only validates masks."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import ALPHABET, BOS, TOKENIZER

from pgprune import PruningError
from pgprune.data.calibration import VALIDATION_WINDOWS, hold_out, open_calibration
from pgprune.data.documents import iterate
from pgprune.data.stream import DataConfig

PAIRS = ["".join(pair) for pair in combinations(ALPHABET, 2)]
"""Documents repeat one pair of letters each, by which windows tell where they are from."""


def config_of(folder: Path, documents: list[str], **options) -> DataConfig:
    """A text of one JSON line a document, in windows of four tokens."""
    path = folder / "text.jsonl"
    path.write_text("".join(f'{{"text": "{text}"}}\n' for text in documents))
    return DataConfig(calibration=str(path), sequence_length=4, batch_size=2, **options)


def sources(windows: torch.Tensor) -> set[frozenset[int]]:
    """The pairs of letters of the documents that windows are from."""
    neighbours = zip(
        windows[:, :-1].flatten().tolist(), windows[:, 1:].flatten().tolist(), strict=True
    )
    return {frozenset(pair) for pair in neighbours if BOS not in pair}


def any_text(documents) -> bool:
    return next(iterate(documents), None) is not None


@settings(max_examples=20)
@given(st.integers(2, 9), st.integers(0, 2**40), st.sampled_from([None, 6, 500]))
def test_no_document_is_both_trained_on_and_validated_on(tmp_path_factory, length, seed, samples):
    documents = [pair * length for pair in PAIRS]
    config = config_of(tmp_path_factory.mktemp("text"), documents, calibration_samples=samples)
    stream, validation = open_calibration(config, TOKENIZER, seed)
    trained = torch.cat([stream.next() for _ in range(300)])
    assert sources(trained) and sources(validation)
    assert not sources(trained) & sources(validation)


def test_copies_of_a_document_are_on_one_side(tmp_path):
    documents = [pair * 4 for pair in PAIRS] * 2
    stream, validation = open_calibration(config_of(tmp_path, documents), TOKENIZER)
    trained = stream.head(1200)
    assert len(sources(trained)) > 250 and not sources(trained) & sources(validation)


def test_validation_windows_are_the_same_for_every_seed_and_finite_set(tmp_path):
    documents = [ALPHABET[i:] + ALPHABET[:i] for i in range(26)] * 40
    few = config_of(tmp_path, documents, calibration_samples=4)
    validation = open_calibration(few, TOKENIZER, seed=1)[1]
    assert validation.shape == (VALIDATION_WINDOWS, 4)
    other = open_calibration(config_of(tmp_path, documents), TOKENIZER, seed=2)[1]
    assert torch.equal(validation, other)


def test_the_stream_can_be_sought_and_starts_over_without_what_is_held_out(tmp_path):
    config = config_of(tmp_path, [pair * 5 for pair in PAIRS])
    stream, _ = open_calibration(config, TOKENIZER, seed=3)
    batches = [stream.next() for _ in range(50)]
    stream.seek(20)
    assert torch.equal(stream.next(), batches[20])


@pytest.mark.parametrize("streamed", [False, True])
def test_of_few_documents_the_end_of_each_is_held_out(streamed):
    documents = ["a" * 100, "b" * 50]
    text = (lambda: iter(documents)) if streamed else documents
    training, held = map(list, map(iterate, hold_out(text, any_text)))
    assert [a + b for a, b in zip(training, held, strict=True)] == documents
    assert [len(part) for part in held] == [6, 3]


def test_as_much_is_held_out_as_a_window_needs(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abcdefghijklmnop")
    config = DataConfig(calibration=str(path), sequence_length=4, batch_size=2)
    stream, validation = open_calibration(config, TOKENIZER)
    assert validation.tolist() == [[BOS, 12, 13, 14]]  # of "mnop", a quarter
    assert set(stream.head(3).flatten().tolist()) <= {BOS, *range(12)}


def test_text_without_a_window_for_each_side_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("abcde")
    config = DataConfig(calibration=str(path), sequence_length=4, batch_size=1)
    with pytest.raises(PruningError, match=r"short\.txt.*two windows of 4 tokens"):
        open_calibration(config, TOKENIZER)
