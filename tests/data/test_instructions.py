"""Data to finetune on: what is read, what the model sees of it, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from helpers.tiny import letters_tokenizer
from pgprune import PruningError
from pgprune.data.instructions import prompt_of, read_instructions
from pgprune.data.training_data import training_windows

ROWS = [
    {"instruction": "add", "input": "one two", "output": "three"},
    {"instruction": "say hello", "input": "", "output": "hello"},
    {"instruction": "say nothing", "input": "", "output": " "},
    {"instruction": "spell", "output": "abc"},
]
RESPONSES = ["three", "hello", "abc"]


@pytest.fixture
def tokenizer():
    """One token a letter, and 26 for the end."""
    tokenizer = letters_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    return tokenizer


@pytest.fixture
def alpaca(tmp_path) -> Path:
    return write(tmp_path / "alpaca.json", json.dumps(ROWS))


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def responses(source) -> list[str] | None:
    examples = read_instructions(str(source))
    return None if examples is None else [example.response for example in examples]


def test_instructions_are_read_from_every_kind_of_file(tmp_path, alpaca):
    lines = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, ROWS)))
    assert responses(alpaca) == responses(lines) == RESPONSES
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert responses(tmp_path / "a.parquet") == RESPONSES


def test_a_range_of_rows(alpaca):
    assert responses(f"{alpaca}[1:]") == ["hello", "abc"]
    assert responses(f"{alpaca}[:1]") == ["three"]


def test_data_sets_of_the_hub_are_streamed(monkeypatch):
    def load_dataset(name, config, *, split, streaming):
        assert (name, config, split, streaming) == ("org/name", "en", "train", True)
        return iter(rows)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    rows = ROWS
    assert responses("org/name:en[:2]") == ["three", "hello"]
    rows = [{"text": "plain"}]
    assert responses("org/name:en") is None


@pytest.mark.parametrize("source", ["builtin", "builtin:prose", "a.txt", "x.jsonl,y.jsonl"])
def test_anything_else_is_plain_text(source):
    assert read_instructions(source) is None


def test_lines_of_text_are_plain_text(tmp_path):
    assert responses(write(tmp_path / "a.jsonl", '{"text": "abc"}')) is None


def test_the_prompt_leaves_out_what_is_not_given():
    assert prompt_of("add ", "one two") == "Task: add\n\nGiven: one two\n\nAnswer:\n"
    assert prompt_of("spell") == "Task: spell\n\nAnswer:\n"


def test_the_real_file(assets):
    examples = list(read_instructions(f"{assets}/text/alpaca/alpaca_5000.json"))
    assert 4900 < len(examples) <= 5000
    assert all(example.prompt.startswith("Task: ") for example in examples)


def decoded(ids: torch.Tensor) -> str:
    return "".join("abcdefghijklmnopqrstuvwxyz."[i] for i in ids.flatten().tolist())


def test_every_example_is_in_the_windows_with_its_end(alpaca, tokenizer):
    windows = training_windows(str(alpaca), tokenizer, 2, 99)  # at most one token is cut off
    assert windows.kind == "instructions"
    assert windows.ids.dtype == torch.int64
    assert windows.trained.all()
    whole = decoded(windows.ids) + "."
    assert all(f"{response}." in whole for response in RESPONSES)
    longer = training_windows(str(alpaca), tokenizer, 10, 99)
    assert whole.startswith(decoded(longer.ids))


def test_training_on_responses_counts_them_and_their_end_alone(alpaca, tokenizer):
    windows = training_windows(str(alpaca), tokenizer, 40, 99, train_on="response")
    assert windows.trained.shape == windows.ids.shape
    learned = decoded(windows.ids[windows.trained])
    assert any(f"{response}." in learned for response in RESPONSES)
    assert set(learned) <= set("".join(RESPONSES) + ".")
    assert (windows.ids >= 0).all()


def test_the_order_follows_the_seed_and_the_number_of_windows_is_a_limit(tmp_path, tokenizer):
    rows = [{"instruction": "say", "output": letter * 9} for letter in "bcdefghijk"]
    path = str(write(tmp_path / "a.json", json.dumps(rows)))
    first, again, other = (training_windows(path, tokenizer, 8, 5, seed).ids for seed in (0, 0, 1))
    assert first.shape == (5, 8)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(training_windows(path, tokenizer, 8, 3).ids, first[:3])


def test_plain_text_is_cut_as_it_is_for_calibration(tmp_path, tokenizer):
    path = write(tmp_path / "a.txt", "abcdefghijkl")
    windows = training_windows(str(path), tokenizer, 5, 99)
    assert windows.kind == "text"
    assert decoded(windows.ids) == "abcdefghij"  # and no end of text
    assert windows.trained.all()


def test_a_mix_has_windows_by_weight_until_a_part_ends(tmp_path, tokenizer):
    parts = [write(tmp_path / f"{letter}.txt", letter * 80) for letter in "ab"]
    source = f"{parts[0]}:1,{parts[1]}:3"
    windows = training_windows(source, tokenizer, 8, samples=12)
    of = ["a" if "a" in decoded(ids) else "b" for ids in windows.ids]
    assert (of.count("a"), of.count("b")) == (3, 9)
    everything = training_windows(source, tokenizer, 8, samples=100)
    assert len(everything.ids) < 16, "the second part has ended"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "", "is not JSON"),
        ("a.json", "[]", "is empty; give instructions"),
        ("a.json", "{}", "is not a JSON list"),
        ("a.json", '[{"text": "abc"}]', "row 1 of .* is not an instruction"),
        ("a.json", '[{"instruction": "a", "output": "b"}, 3]', "row 2 of .* is not an instruction"),
        ("a.json", '[{"instruction": "a", "output": ""}]', "is empty"),
        ("a.json", '[{"instruction": "a", "output": 4}]', "row 1 of .* is not an instruction"),
        (
            "a.json",
            '[{"instruction": "a", "output": "b"}]',
            "shorter than one window of 500 tokens",
        ),
        ("a.jsonl", '{"instruction": "a", "outp', "line 1 of .* is not JSON"),
        ("a.jsonl", "", "is empty"),
        ("a.jsonl", '{"question": "a"}', "has no text"),
        ("a.parquet", "PAR1", "cannot be read"),
        ("a.txt", "abc", "shorter than one window of 500 tokens"),
    ],
)
def test_bad_files(tmp_path, tokenizer, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(PruningError, match=message) as error:
        training_windows(str(path), tokenizer, 500, 4)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source", ["nowhere.json", "nowhere.jsonl", "/no/where.parquet", "no/x.json"]
)
def test_files_that_do_not_exist(tokenizer, source):
    with pytest.raises(PruningError, match=f"{source}' does not exist"):
        training_windows(source, tokenizer, 4, 4)


def test_plain_text_has_no_responses(tmp_path, tokenizer):
    path = write(tmp_path / "a.txt", "abcdefgh")
    with pytest.raises(PruningError, match="train_on response needs instructions"):
        training_windows(str(path), tokenizer, 4, 4, train_on="response")
