import json
import os
from pathlib import Path

import pytest

from helpers.texts import calibration_documents, read, write, write_parquet
from pgprune import PruningError
from pgprune.data.documents import calibration_parts, evaluation_documents, iterate

STORIES = ["one", "two", "three", "four"]


@pytest.fixture
def stories(tmp_path) -> Path:
    path = tmp_path / "stories.jsonl"
    path.write_text("\n\n".join(json.dumps({"id": i, "text": t}) for i, t in enumerate(STORIES)))
    return path


def test_a_txt_file_is_one_document(tmp_path):
    path = write(tmp_path / "a.txt", "\ufeffIt was\r\n\r\nraining. \u2603\n")
    assert read(path) == ["It was\n\nraining. \u2603\n"]


def test_a_jsonl_file_is_one_document_a_line(stories):
    assert read(stories) == STORIES


def test_half_a_character_escaped_in_json_is_replaced(tmp_path):
    assert read(write(tmp_path / "a.jsonl", '{"text": "a\\ud83d b"}')) == ["a? b"]


def test_a_parquet_file_is_one_document_a_row(tmp_path):
    ids = list(range(3))
    assert read(write_parquet(tmp_path / "a.parquet", id=ids, text=["x", None, "y"])) == ["x", "y"]
    assert read(write_parquet(tmp_path / "b.parquet", id=ids, body=["x", "y", "z"])) == list("xyz")


def test_a_directory_is_its_files_in_order(tmp_path, stories):
    write(tmp_path / "a.txt", "first")
    write(tmp_path / "notes.md", "not a known format")
    assert read(tmp_path) == ["first", *STORIES]


def test_several_items_follow_each_other(tmp_path, stories):
    other = write(tmp_path / "b.txt", "five")
    assert read(f"{stories}, {other}") == [*STORIES, "five"]


@pytest.mark.parametrize(
    ("suffix", "chosen"),
    [("[:2]", slice(2)), ("[2:]", slice(2, None)), ("[1:3]", slice(1, 3)), ("[:]", slice(None))],
)
def test_a_range_of_documents(stories, suffix, chosen):
    assert read(f"{stories}{suffix}") == STORIES[chosen]


def test_blank_documents_are_counted_in_ranges_but_left_out(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=["x", " \n", "y", "z"])
    assert read(f"{path}[:3]") == ["x", "y"]


def test_large_files_are_streamed_again_and_again(stories):
    documents = calibration_documents(f"{stories}[1:],{stories}[:1]", in_memory_bytes=10)
    assert callable(documents)
    assert list(documents()) == list(documents()) == [*STORIES[1:], "one"]


def test_builtin_text_calibrates_on_code_and_evaluates_what_is_held_out():
    training = calibration_documents("builtin")
    held_out = evaluation_documents("builtin")
    assert list(held_out) == ["code", "prose"]
    assert all(len(documents) > 10 for documents in [training, *held_out.values()])
    shared = set(training) & set(held_out["code"])
    assert all(len(document) < 100 for document in shared)  # a lone comment in an __init__.py
    assert calibration_documents("builtin[:3]") == training[:3]


def test_one_domain_of_the_builtin_text_can_be_named():
    assert calibration_documents("builtin:code") == calibration_documents("builtin")
    assert calibration_documents("builtin:prose") != calibration_documents("builtin:code")
    assert list(evaluation_documents("builtin:prose")) == ["prose"]
    assert not set(calibration_documents("builtin:prose")) & set(
        evaluation_documents("builtin:prose")["prose"]
    )


def test_evaluation_sets_are_named_by_their_files(tmp_path, stories):
    write(tmp_path / "wiki.test.txt", "x")
    sets = evaluation_documents(f"{stories}[2:],{tmp_path}/wiki.test.txt,{stories}[:2]")
    assert {name: list(iterate(documents)) for name, documents in sets.items()} == {
        "stories": STORIES[2:],
        "wiki.test": ["x"],
        f"{stories}[:2]": STORIES[:2],  # its name was taken
    }


@pytest.mark.parametrize(
    ("place", "loaded"),
    [
        ("org/name", ("org/name", None, "test")),
        ("org/name:en", ("org/name", "en", "test")),
        ("org/name:en:train", ("org/name", "en", "train")),
        ("name::validation[1:3]", ("name", None, "validation")),
    ],
)
def test_hub_data_sets_are_streamed(monkeypatch, place, loaded):
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split))
        assert streaming
        return [{"text": t, "url": "u"} for t in STORIES]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    ((name, documents),) = evaluation_documents(place).items()
    assert name == loaded[0]
    assert callable(documents)
    assert list(documents()) == (STORIES[1:3] if "[" in place else STORIES)
    assert set(calls) == {loaded}
    calibration_documents("org/name")
    assert calls[-1] == ("org/name", None, "train")


def test_no_network_or_an_unknown_data_set_is_said_so(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    message = r"'a/b:c' cannot be read \(Couldn't reach the Hub\); ch"
    with pytest.raises(PruningError, match=message):
        calibration_documents("a/b:c")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b" \n\n", "is empty"),
        ("a.txt", b"\x7fELF\0\0", "is binary"),
        ("a.txt", b"\xff\xfe\xfd", "is binary"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b'{"text": ""}\n', "is empty"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": 3}', "line 3 of .* has no text"),
        ("a.jsonl", b'{"text": "x"}\n["text"]', "line 2 of .* has no text"),
        ("a.jsonl", b'{"text": "x"}\n{"te', "line 2 of .* is not JSON"),
        ("a.jsonl", b"\x7fELF\0\0\xff", "line 1 of .* is not JSON"),
        ("a.parquet", b"PAR1", "cannot be read"),
        ("a.md", b"text", "none of the known formats; give .txt, .jsonl or .parquet"),
    ],
)
def test_bad_files_are_refused_at_once(tmp_path, name, content, message):
    with pytest.raises(PruningError, match=message) as error:
        calibration_parts(str(write(tmp_path / name, content)))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.txt", "'no/such/file.txt' does not exist"),
        ("/no/such/directory", "does not exist"),
        ("builtin[9999:]", "is empty"),
        ("stories.jsonl[:10%]", "not understood"),
        ("builtin,", "'' is not understood"),
    ],
)
def test_bad_sources_are_refused_at_once(source, message):
    with pytest.raises(PruningError, match=message):
        calibration_documents(source)


def test_a_directory_without_text_is_refused(tmp_path):
    with pytest.raises(PruningError, match="none of the known formats"):
        calibration_documents(str(tmp_path))


@pytest.mark.skipif(os.name == "nt" or not os.getuid(), reason="root may read everything")
def test_an_unreadable_file_is_refused(stories):
    stories.chmod(0)
    with pytest.raises(PruningError, match="Permission denied"):
        calibration_documents(str(stories))


def test_columns_must_be_clear(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", title=["x"], body=["y"])
    with pytest.raises(PruningError, match=r"its columns are title \(string\), body \(string\)"):
        calibration_documents(str(path))


def test_weights_make_a_mix_of_parts(tmp_path, stories):
    other = write(tmp_path / "b.txt", "five")
    parts = calibration_parts(f"{stories}[:2]:3, {other}:0.5, builtin:code[:1]:1")
    assert [part.weight for part in parts] == [3, 0.5, 1]
    assert [list(iterate(part.documents)) for part in parts[:2]] == [STORIES[:2], ["five"]]


def test_an_empty_part_of_a_mix_is_refused(tmp_path):
    with pytest.raises(PruningError, match=r"b\.txt:1' is empty"):
        calibration_parts(f"builtin:1,{write(tmp_path / 'b.txt', ' ')}:1")


def test_weights_of_evaluation_texts_are_refused():
    with pytest.raises(PruningError, match="'c4:1,builtin:2' has weights.*leave the weights out"):
        evaluation_documents("c4:1,builtin:2")
