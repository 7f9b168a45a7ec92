"""Texts in files that are compressed, odd, damaged or hostile."""

import datetime
import gzip
import json
import os
from pathlib import Path

import pytest

from helpers.texts import read, write, write_parquet
from pgprune import PruningError
from pgprune.data import rows
from pgprune.data.documents import evaluation_documents

STORIES = ["one", "two", "three", "four"]


@pytest.fixture
def stories(tmp_path) -> Path:
    lines = (json.dumps({"text": text}) for text in STORIES)
    return write(tmp_path / "stories.jsonl", "\n".join(lines))


def test_endings_in_capital_letters_and_compressed_files(tmp_path):
    write(tmp_path / "A.TXT", "one")
    write(tmp_path / "b.txt.gz", gzip.compress(b"\xef\xbb\xbftwo"))
    write(tmp_path / "c.jsonl.GZ", gzip.compress(b'{"text": "three"}\n{"text": "four"}'))
    assert read(tmp_path) == STORIES
    assert list(evaluation_documents(f"{tmp_path}/c.jsonl.GZ")) == ["c"]


def test_a_compressed_file_that_is_cut_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", gzip.compress(b'{"text": "three"}' * 100)[:-9])
    with pytest.raises(PruningError, match="a.jsonl.gz' cannot be read"):
        read(path)


def test_null_is_a_blank_document_in_every_format(tmp_path):
    lines = write(tmp_path / "a.jsonl", '{"text": null}\n{"text": "x"}\n')
    table = write_parquet(tmp_path / "a.parquet", text=[None, "x"], body=["u", "v"])
    other = write_parquet(tmp_path / "b.parquet", body=[None, "x"])
    for path in (lines, table, other):
        assert read(path) == ["x"]
        assert read(f"{path}[1:]") == ["x"]
        with pytest.raises(PruningError, match="is empty"):
            read(f"{path}[:1]")


@pytest.mark.parametrize(
    "values", [[1, 2], [1.5], [b"abc"], [["a"]], [{"a": "b"}], [True], [datetime.date(2020, 1, 1)]]
)
def test_a_column_that_holds_no_strings_is_refused(tmp_path, values):
    with pytest.raises(PruningError, match=r"`text` of strings .* its columns are text \("):
        read(write_parquet(tmp_path / "a.parquet", text=values))


def test_categories_of_strings_are_strings(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    column = pyarrow.array(["x", "y", "x"]).dictionary_encode()
    assert read(write_parquet(tmp_path / "a.parquet", text=column)) == ["x", "y", "x"]


def test_a_name_in_a_file_cannot_steer_the_terminal(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", **{"\x1b]0;title\x07\u202e": [1]})
    with pytest.raises(PruningError) as caught:
        read(path)
    assert not {"\x1b", "\x07", "\u202e"} & set(str(caught.value))


@pytest.mark.parametrize("name", ["text", "json", "csv:x", "parquet::train", "pandas", "xml"])
def test_formats_of_the_package_datasets_are_no_data_sets(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.txt", "a private note")
    with pytest.raises(PruningError, match="is no data set of the hub"):
        read(name)


def test_a_directory_with_a_split_is_no_data_set(tmp_path, monkeypatch, stories):
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(PruningError, match="names files of this machine"):
        read(f"{tmp_path.name}::train")


def test_json_nested_deeper_than_the_stack_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text":' * 100_000)
    with pytest.raises(PruningError, match="line 1 of .* nested too deeply"):
        read(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_document_too_long_for_a_tokenizer_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(rows, "LONGEST", 1000)
    text = "é" * 1001
    path = write(tmp_path / name, text if name == "a.txt" else json.dumps({"text": text}))
    with pytest.raises(PruningError, match="a document of more than 1,000 characters"):
        read(path)


def test_a_range_may_end_beyond_every_text(stories):
    assert read(f"{stories}[1:{9 * '9' * 90}]") == STORIES[1:]
    with pytest.raises(PruningError, match="is empty"):
        read(f"{stories}[{'9' * 30}:]")


def test_all_kinds_of_strings_in_parquet_are_strings(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    for kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
        column = pyarrow.array(["x", None, "y"], kind)
        assert read(write_parquet(tmp_path / "a.parquet", text=column)) == ["x", "y"]


@pytest.mark.parametrize("other", [["u", "v"], [1, 2]])
def test_columns_that_share_a_name_are_refused(tmp_path, other):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = [pyarrow.array(["x", "y"]), pyarrow.array(other)]
    table = pyarrow.Table.from_arrays(columns, names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(PruningError, match="several columns named 'text'; rename all but one"):
        read(tmp_path / "a.parquet")


def test_pipes_directories_and_broken_links_with_the_name_of_a_text_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")  # opening it would wait for a writer
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inner.txt").mkdir()
    (tmp_path / "link.txt").symlink_to("missing.txt")
    for path in ("pipe.jsonl", "folder", "link.txt"):
        with pytest.raises(PruningError, match="is a directory, a pipe, a device or a link"):
            read(tmp_path / path)
