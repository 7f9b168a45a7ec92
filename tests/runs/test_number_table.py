"""Tables at the width of a terminal: nothing that matters is cut."""

import io

import pytest
from rich.console import Console

from pgprune.runs.number_table import broken, print_table

NAMES = ["sample_c4-realnewslike", "sample_wikitext-2-raw", "sample_code-python", "prose"]
HEAD = ["perplexity", "parameters", "ratio", *NAMES]
ROWS = [["dense", "134,515,008", "100.0%", *["20.437"] * 4], ["pruned", "-", "-", *["9,138.5"] * 4]]


def printed(width: int, head=HEAD, rows=ROWS, **options) -> list[str]:
    out = Console(file=io.StringIO(), width=width)
    print_table(head, rows, out, **options)
    return [line.rstrip() for line in out.file.getvalue().splitlines() if line.strip()]


def test_a_wide_terminal_has_heads_in_one_line():
    head, line, *rows = printed(140)
    assert head.split() == HEAD and set(line) == {" ", "─"} or set(line) == {"─"}
    assert [row.split() for row in rows] == ROWS


def test_a_narrower_one_breaks_heads_at_their_joints():
    lines = printed(100)
    assert any(line.split() == ["dense", *ROWS[0][1:]] for line in lines)
    assert {"sample_c4-", "realnewslike", "wikitext-2-", "sample_code-"} <= set(
        " ".join(lines).split()
    )


@pytest.mark.parametrize("width", [50, 60, 70])
def test_a_narrow_one_turns_the_table(width):
    lines = printed(width, bold=[0])
    assert lines[0].split() == ["perplexity", "dense", "pruned"]
    assert [line.split() for line in lines[2:]] == [
        [name, *cells] for name, *cells in zip(HEAD[1:], *(row[1:] for row in ROWS), strict=True)
    ]


def test_a_table_that_fits_no_way_becomes_several():
    head = ["perplexity", *(f"text{number}" for number in range(8))]
    names = ("dense", "one-shot mask of the metric", "learned mask", "best", "as shipped")
    lines = printed(60, head, [[name, *["2,601.544 ± 328"] * 8] for name in names])
    assert max(map(len, lines)) <= 60
    text = " ".join(lines)
    assert text.count("2,601.544 ± 328") == 40 and all(name in text for name in head)


@pytest.mark.parametrize("width", range(40, 130, 5))
def test_nothing_is_cut_at_any_width(width):
    head = ["rate", "parameters", "time", "code", "prose", "one-shot code", "evaluations"]
    rows = [[f"0.{n}", "3,649,440", "0.92", "11.54", "19.72", "14.09", "320"] for n in range(6)]
    text = " ".join(printed(width, head, rows))
    assert text.count("3,649,440") == 6 and text.count("19.72") == 6


def test_columns_of_names_are_joined_where_it_is_turned():
    head = ["zero-shot, %", "metric", *(f"task_number_{n}" for n in range(9))]
    lines = printed(
        80, head, [["dense", "acc", *["51.2"] * 9], ["chance", "", *["25.0"] * 9]], names=2
    )
    assert lines[0].split() == ["zero-shot,", "%", "dense", "acc", "chance"]
    assert lines[-1].split() == ["task_number_8", "51.2", "25.0"]


def test_numbers_stay_whole_and_no_dots_stand_for_names():
    rows = [["a-name-that-is-much-too-long-for-it", "12,345.678", "1.0"]]
    text = "\n".join(printed(44, ["model", "a head of words", "ratio"], rows))
    assert "12,345.678" in text and "1.0" in text and "…" not in text


@pytest.mark.parametrize(
    ("head", "lines"),
    [
        ("code", ["code"]),
        ("of prunable", ["of prunable"]),
        ("sample_c4-realnewslike", ["sample_c4-", "realnewslike"]),
        ("one-shot mask of the metric", ["one-shot", "mask of the", "metric"]),
        ("averylongwordindeed", ["averylongwordindeed"]),
    ],
)
def test_where_heads_are_broken(head, lines):
    assert broken(head, 11).split("\n") == lines


def test_names_cannot_steer_the_terminal_and_are_no_markup():
    console = Console(file=io.StringIO(), width=80)
    print_table(["model", "\x1b[8mtext"], [["[red]\x1b]0;title\x07m", "1.0"]], console)
    shown = console.file.getvalue()
    assert "[red]\ufffd]0;title\ufffdm" in shown
    assert "\x1b" not in shown
