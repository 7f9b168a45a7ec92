"""Records are lines of their own, also after a line that a power cut left incomplete."""

import json

from pgprune.utils.jsonl import add_line, read_lines


def test_a_record_after_an_incomplete_line(tmp_path):
    path = tmp_path / "records.jsonl"
    add_line(path, {"number": 1})
    with path.open("a") as file:
        file.write(json.dumps({"number": 2})[:5])
    add_line(path, {"number": 3})
    assert read_lines(path) == [{"number": 1}, {"number": 3}]
    assert path.read_text().count("\n") == 3


def test_a_byte_order_mark_is_no_part_of_the_first_record(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"number": 1}\n{"number": 2}\n', encoding="utf-8-sig")
    assert read_lines(path) == [{"number": 1}, {"number": 2}]
