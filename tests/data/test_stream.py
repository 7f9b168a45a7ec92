import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from pgprune import PruningError
from pgprune.data import tokens
from pgprune.data.calibration import open_calibration
from pgprune.data.stream import (
    CalibrationStream,
    DataConfig,
    check_sequence_length,
    evaluation_windows,
)
from pgprune.data.windows import TextWindows

BOS = 26


def letters_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a letter: a is 0 and z is 25."""
    vocabulary = {chr(ord("a") + i): i for i in range(26)} | {"<s>": BOS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", model_max_length=4, pad_token="<s>"
    )


TOKENIZER = letters_tokenizer()
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
DOCUMENTS = [ALPHABET[i : i + 1 + i % 7] for i in range(20)]
WINDOWS = sum(len(d) + 1 for d in DOCUMENTS) // 4

texts = st.lists(st.text(ALPHABET, min_size=1, max_size=12), min_size=3, max_size=12)
seeds = st.integers(0, 2**40)


def make(documents=DOCUMENTS, length=4, batch=3, **options) -> CalibrationStream:
    """A stream, in blocks of three documents."""
    windows = TextWindows(
        documents, TOKENIZER, length, block_documents=options.pop("block_documents", 3)
    )
    return CalibrationStream(windows, batch, **options)


def take(source: CalibrationStream, batches: int) -> torch.Tensor:
    return torch.cat([source.next() for _ in range(batches)])


def multiset(windows: torch.Tensor) -> list[list[int]]:
    return sorted(windows.tolist())


@pytest.fixture(params=["in memory", "streamed"])
def documents(request):
    """The same text either way."""
    return DOCUMENTS if request.param == "in memory" else lambda: iter(DOCUMENTS)


def test_a_batch_is_token_ids():
    batch = make().next()
    assert batch.shape == (3, 4)
    assert batch.dtype == torch.int64
    assert batch.device.type == "cpu"


def test_documents_are_shuffled_joined_each_with_its_bos_cut_and_shuffled_again():
    documents = ["abc", "defgh"]  # with BOS ten tokens: two windows of four, and a remainder
    one_order = {(BOS, 0, 1, 2), (BOS, 3, 4, 5)}
    other_order = {(BOS, 3, 4, 5), (6, 7, BOS, 0)}
    batches = [make(documents, batch=2, seed=seed).next().tolist() for seed in range(20)]
    found = {frozenset(map(tuple, batch)) for batch in batches}
    assert found == {frozenset(one_order), frozenset(other_order)}
    assert len({tuple(map(tuple, batch)) for batch in batches}) == 4


def test_windows_straddle_blocks():
    source = make(lambda: iter(["a", "b", "c", "d"]), length=8, batch=1, block_documents=1)
    assert source.next().tolist() == [[BOS, 0, BOS, 1, BOS, 2, BOS, 3]]


def test_the_sequence_is_a_pure_function_of_the_seed(documents):
    assert torch.equal(take(make(documents, seed=7), 30), take(make(documents, seed=7), 30))
    assert not torch.equal(take(make(documents, seed=7), 30), take(make(documents, seed=8), 30))


def test_an_epoch_is_all_the_text_and_epochs_differ_in_order(documents):
    source = make(lambda: iter(DOCUMENTS), batch=1)
    first, second = take(source, WINDOWS), take(source, WINDOWS)
    assert multiset(first) == multiset(second)
    assert not torch.equal(first, second)


def test_every_epoch_of_documents_in_memory_has_all_their_windows_but_the_remainder():
    source = make(batch=1)
    bos = sum(int((source.next() == BOS).sum()) for _ in range(WINDOWS))
    assert bos in (len(DOCUMENTS) - 1, len(DOCUMENTS))  # one may be in the remainder


def test_batch_size_only_cuts_the_sequence():
    assert torch.equal(take(make(batch=1), 30), take(make(batch=5), 6))


@given(texts, seeds, st.integers(0, 12), st.integers(0, 12), st.none() | st.integers(2, 3))
def test_seek_is_the_same_as_running_there(documents, seed, before, position, samples):
    if sum(len(d) + 1 for d in documents) < 3 * (samples or 1):
        samples = None
    options = {"length": 3, "batch": 2, "seed": seed}
    try:
        running = make(documents, samples=samples, **options)
        expected = take(running, position + 2)[-2 * 2 :]
    except PruningError:  # too short for the samples
        return
    sought = make(documents, samples=samples, **options)
    for _ in range(before):
        sought.next()
    sought.seek(position)
    assert sought.position == position
    assert torch.equal(take(sought, 2), expected)
    assert sought.position == running.position


@given(texts, seeds)
def test_head_and_fork_leave_the_stream_where_it_is(documents, seed):
    options = {"length": 2, "batch": 2}
    source, other = make(documents, seed=seed, **options), make(documents, seed=seed, **options)
    source.next(), other.next()
    fork = source.fork(seed + 1)
    assert torch.equal(source.head(3), make(documents, seed=seed, **options).head(3))
    assert torch.equal(take(fork, 4), take(make(documents, seed=seed + 1, **options), 4))
    assert torch.equal(take(source, 4), take(other, 4))


def test_head_begins_the_sequence(documents):
    source = make(documents)
    head = source.head(9)
    assert torch.equal(take(source, 3), head)
    assert torch.equal(source.head(9), head)


def test_reseed_starts_over(documents):
    source = make(documents, seed=3)
    source.next()
    source.reseed(4)
    assert (source.seed, source.position) == (4, 0)
    assert torch.equal(take(source, 5), take(make(documents, seed=4), 5))


@pytest.mark.parametrize("samples", [3, 5, 7])
def test_samples_are_a_finite_set_revisited_in_epochs(documents, samples):
    source = make(documents, batch=3, samples=samples)
    epochs = take(source, 3 * samples).view(-1, samples, 4)
    assert torch.equal(epochs[0], make(documents, samples=None).head(samples))
    assert all(multiset(epoch) == multiset(epochs[0]) for epoch in epochs)
    assert any(not torch.equal(epoch, epochs[0]) for epoch in epochs)
    assert torch.equal(source.head(samples + 2), epochs[0]), "there are no more"


def test_nothing_in_memory_is_tokenised_twice(monkeypatch):
    seen = []
    encode = tokens.encode
    monkeypatch.setattr(
        tokens, "encode", lambda t, texts: encode(t, seen.extend(texts := list(texts)) or texts)
    )
    source = make()
    take(source, 100)
    take(source.fork(5), 100)
    assert sorted(seen) == sorted(DOCUMENTS)


def test_long_documents_are_no_reason_to_warn(caplog, capfd):
    make(["abcdefghijklmnopqrstuvwxyz"] * 3).next()
    assert not caplog.records
    assert "longer than" not in capfd.readouterr().err


@pytest.mark.parametrize("samples", [None, 3])
def test_too_short_text_is_said_so(samples):
    with pytest.raises(PruningError, match="text"):
        make(["ab"], length=8, samples=samples).next()
    with pytest.raises(PruningError, match="2 windows of 4 tokens.* 3 "):
        make(["abc", "abc"], samples=samples).head(3)


def test_numbers_that_make_no_stream_are_refused():
    with pytest.raises(PruningError, match="seed -1"):
        make(seed=-1)
    with pytest.raises(PruningError, match="position -1"):
        make().seek(-1)
    with pytest.raises(PruningError, match="calibration_samples 2 .* 3"):
        make(samples=2)
    for field, value in {"sequence_length": 1, "batch_size": 0, "evaluation_windows": 0}.items():
        with pytest.raises(PruningError, match=f"{field} must be .* not {value}"):
            DataConfig(**{field: value})
    with pytest.raises(PruningError, match="calibration_samples 4"):
        DataConfig(calibration_samples=4)


def test_calibration_text_shorter_than_asked_is_refused_at_once(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text(ALPHABET[:16])  # three windows to train on, one to validate on
    config = DataConfig(calibration=str(path), sequence_length=4, batch_size=2)
    assert open_calibration(config, TOKENIZER, seed=1)[0].next().shape == (2, 4)
    for more in ({"batch_size": 4}, {"calibration_samples": 4}):
        with pytest.raises(PruningError, match=r"short\.txt.* has only"):
            open_calibration(DataConfig(**vars(config) | more), TOKENIZER)


def test_evaluation_sets_are_the_first_windows_in_text_order(tmp_path):
    (tmp_path / "one.txt").write_text(ALPHABET)
    (tmp_path / "two.txt").write_text("zyx")
    config = DataConfig(
        evaluation=f"{tmp_path}/one.txt,{tmp_path}/two.txt", sequence_length=4, evaluation_windows=2
    )
    sets = evaluation_windows(config, TOKENIZER)
    assert sets["one"].tolist() == [[BOS, 0, 1, 2], [3, 4, 5, 6]]
    assert sets["two"].tolist() == [[BOS, 25, 24, 23]]
    assert sets["two"].dtype == torch.int64


def test_texts_are_read_at_several_lengths_with_the_same_tokens(tmp_path):
    (tmp_path / "one.txt").write_text(ALPHABET)
    config = DataConfig(
        evaluation=f"{tmp_path}/one.txt",
        sequence_length=4,
        evaluation_windows=3,
        evaluation_lengths=(4, 6),
    )
    sets = evaluation_windows(config, TOKENIZER)
    assert list(sets) == ["one", "one@6"]
    assert torch.equal(sets["one"].flatten(), sets["one@6"].flatten())
    assert [tuple(windows.shape) for windows in sets.values()] == [(3, 4), (2, 6)]
    assert config.longest == 6
    with pytest.raises(PruningError, match="evaluation_lengths"):
        DataConfig(evaluation_lengths=(1,))


def test_a_tokenizer_without_bos_gets_none(tmp_path):
    (tmp_path / "one.txt").write_text("abcd")
    config = DataConfig(evaluation=f"{tmp_path}/one.txt", sequence_length=4)
    (windows,) = evaluation_windows(config, letters_tokenizer(bos=False)).values()
    assert windows.tolist() == [[0, 1, 2, 3]]


def test_evaluation_text_shorter_than_a_window_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text("ab")
    config = DataConfig(evaluation=f"{tmp_path}/one.txt", sequence_length=4)
    with pytest.raises(PruningError, match="'one' .* window of 4"):
        evaluation_windows(config, TOKENIZER)


def test_windows_longer_than_the_context_are_refused():
    check_sequence_length(LlamaConfig(max_position_embeddings=64), 64)
    with pytest.raises(PruningError, match="sequence_length 65 .* 64"):
        check_sequence_length(LlamaConfig(max_position_embeddings=64), 65)


def test_shuffles_do_not_repeat_each_other():
    words = [f"{a}{b}a" for a in ALPHABET[:10] for b in ALPHABET[:10]]  # one window each
    orders = set()
    for seed in range(3):
        source = make(lambda: iter(words), batch=50, seed=seed, block_documents=50)
        for block in range(6):  # two blocks in each of three epochs
            word = source.next() @ torch.tensor([0, 10, 1, 0])
            orders.add(tuple((word - 50 * (block % 2)).tolist()))
    assert len(orders) == 3 * 6
