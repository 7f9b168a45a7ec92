"""Texts with a short name: local files first, the hub where there are none."""

from pathlib import Path

import pytest

from pgprune import PruningError
from pgprune.data.documents import calibration_parts, evaluation_documents, iterate

LINES = " \n = Title = \n \n A line . \n"


def calibrated(source: str) -> list[str]:
    (part,) = calibration_parts(source)
    return list(iterate(part.documents))


@pytest.fixture
def local_texts(tmp_path, monkeypatch) -> Path:
    """A folder of local texts that ``PGPRUNE_ASSETS`` names."""
    for folder in ("text/c4", "text/wikitext2-raw"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "text/c4/sample_c4-rp1.jsonl").write_text('{"text": "to calibrate"}')
    (tmp_path / "text/c4/sample_c4-rp2.jsonl").write_text('{"text": "to evaluate"}')
    (tmp_path / "text/wikitext2-raw/wiki.test.txt").write_text(LINES)
    monkeypatch.setenv("PGPRUNE_ASSETS", str(tmp_path))
    return tmp_path


def test_short_names_are_local_files_where_there_are_any(local_texts):
    assert calibrated("c4") == ["to calibrate"]
    sets = evaluation_documents("c4,wikitext2")
    assert {name: list(iterate(documents)) for name, documents in sets.items()} == {
        "c4": ["to evaluate"],  # never what is calibrated on
        "wikitext2": [LINES],
    }


def test_short_names_are_data_sets_of_the_hub_where_there_are_no_files(local_texts, monkeypatch):
    calls = []

    def load_dataset(name, config, *, split, streaming):
        calls.append((name, config, split))
        return [{"text": line} for line in ["", " = Title = \n", "", " A line . \n"]]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    from_file = evaluation_documents("wikitext2")
    monkeypatch.delenv("PGPRUNE_ASSETS")
    assert evaluation_documents("wikitext2") == from_file  # lines are joined to the raw text
    list(map(next, map(iterate, evaluation_documents("c4").values())))
    assert calibrated("c4[:2]") == [" = Title = \n"]
    assert calibrated("wikitext2") == [" = Title = \n", " A line . \n"]
    assert list(dict.fromkeys(calls)) == [
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test"),
        ("allenai/c4", "en", "validation"),
        ("allenai/c4", "en", "train"),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "train"),
    ]


def test_a_short_name_without_file_and_network_is_said_so(tmp_path, monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setenv("PGPRUNE_ASSETS", str(tmp_path))
    message = (
        "the text 'c4' is not to be had: PGPRUNE_ASSETS names no folder with "
        "text/c4/sample_c4-rp2.jsonl, and the data set 'allenai/c4:en:validation' cannot be read "
        "(Couldn't reach the Hub); mend one of the two, or give a file of your own"
    )
    with pytest.raises(PruningError) as error:
        evaluation_documents("c4")
    assert str(error.value) == message
