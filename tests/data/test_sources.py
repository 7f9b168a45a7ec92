"""How a text source is read: places, ranges and weights."""

import pytest

from pgprune import PruningError
from pgprune.data.sources import absolute_source, items


@pytest.mark.parametrize(
    ("source", "place", "weight"),
    [
        ("a.jsonl:3", "a.jsonl", 3),
        ("a:b.jsonl:3", "a:b.jsonl", 3),
        ("c4:3", "c4", 3),
        ("builtin:prose", "builtin:prose", None),
        ("builtin:prose:1e-1", "builtin:prose", 0.1),
        ("org/name:2024:3", "org/name:2024:3", None),  # a config and a split
        ("org/name:2024:train:3", "org/name:2024:train", 3),
        ("org/name:::3", "org/name::", 3),
        ("org/name[:9]:3", "org/name", 3),
    ],
)
def test_a_weight_follows_a_whole_place(source, place, weight):
    (item,) = items(source)
    assert (item.place, item.weight) == (place, weight)


def test_a_path_with_a_colon_is_no_weight(tmp_path):
    (tmp_path / "texts:3").mkdir()
    (item,) = items(f"{tmp_path}/texts:3")
    assert item.weight is None


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf", "much", ""])
def test_a_weight_that_is_none_is_refused(weight):
    with pytest.raises(PruningError, match=f"'{weight}' is not a weight of 'a.jsonl'"):
        items(f"builtin:1,a.jsonl:{weight}")


def test_weights_of_some_parts_only_are_refused():
    with pytest.raises(PruningError, match="no weight for 'builtin'; give one to every part"):
        items("a.jsonl:2,builtin")


def test_files_are_stored_by_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").touch()
    assert absolute_source("a.jsonl[5:9]:2, builtin:1") == f"{tmp_path}/a.jsonl[5:9]:2,builtin:1"
    for source in ("builtin", "c4", "owner/name:config:train", "missing.jsonl"):
        assert absolute_source(source) == source


@pytest.mark.parametrize("name", ["a,b.jsonl", "a[1].jsonl", "a[1:2].jsonl", "[x],y.jsonl"])
def test_a_file_that_is_there_is_one_item_whatever_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    (item,) = items(name)
    assert (item.place, item.start, item.stop, item.weight) == (name, 0, None, None)
    assert absolute_source(name) == f"{tmp_path}/{name}"
    assert items(f"{tmp_path}/{name}")[0].path == tmp_path / name


@pytest.mark.parametrize("source", ["~\ud800", "~\0", "~nobody-of-this-name/[x]"])
def test_what_is_no_path_is_one_sentence(source):
    with pytest.raises(PruningError, match="a home that is unknown|is not understood"):
        assert items(source)[0].path


def test_a_mix_may_be_longer_than_a_name_of_a_file():
    assert len(items(",".join(["a.jsonl:1"] * 1000))) == 1000
