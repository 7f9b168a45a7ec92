"""The tables that commands print at their end."""

import io

from rich.console import Console

from pgprune.runs.view import print_next, print_results

RESULTS = {
    "prune_rate": {"requested": 0.4, "achieved": 0.4012},
    "parameters": {"dense": 4_000_000, "prunable": 2_000_000, "initial": 3_200_000}
    | {"pruned": 3_197_600},
    "perplexity": {
        "dense": {"code": 4.5, "prose": 12.0},
        "initial": {"code": 40.0, "prose": 1234.5},
        "masked": {"code": 10.0, "prose": None},
    },
    "mask_evaluations": 2000,
    "tokens": 2_048_000,
    "seconds": 200.4,
    "peak_memory_bytes": 300 * 2**20,
}


def console() -> Console:
    return Console(file=io.StringIO(), width=120, highlight=False)


def test_the_final_table():
    out = console()
    print_results(RESULTS, out)
    print_next(["python scripts/report.py runs/[name]"], out)
    text = out.file.getvalue()
    rows = {line.split("  ")[0].strip(): line for line in text.splitlines()}
    assert "4,000,000" in rows["dense"] and "100.00%" in rows["dense"]
    assert "1,234.500" in rows["one-shot mask of the metric"]
    assert "60.00%" in rows["one-shot mask of the metric"]
    assert "10.000" in rows["learned mask"] and "59.88%" in rows["learned mask"]
    assert "as shipped" not in text
    assert "40.12% of the prunable parameters (40.00% asked)" in text
    assert "3:20" in text and "300 MiB" in text
    assert text.endswith("Next\n  python scripts/report.py runs/[name]\n")


def test_a_repaired_model_has_its_own_row_and_an_equal_one_has_not():
    table = dict(RESULTS["perplexity"])
    for pruned, shown in ((table["masked"], False), ({"code": 9.0, "prose": 20.0}, True)):
        out = console()
        print_results({**RESULTS, "perplexity": {**table, "pruned": pruned}}, out)
        assert ("as shipped" in out.file.getvalue()) == shown


def test_at_80_columns_no_name_of_a_text_is_cut():
    names = ["sample_c4-realnewslike-validation", "sample_wikitext-2-raw-test", "prose"]
    table = {row: dict.fromkeys(names, 12345.678) for row in RESULTS["perplexity"]}
    out = Console(file=io.StringIO(), width=80)
    print_results({**RESULTS, "perplexity": table}, out)
    text = out.file.getvalue()
    for words in ("realnewslike", "wikitext", "parameters", "3,197,600", "12,345.678"):
        assert words in text
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_at_80_columns_errors_leave_room_for_all_columns():
    table = {row: {"c4": 2601.544, "wikitext2": 2599.619} for row in ("dense", "initial", "masked")}
    errors = {row: {"c4": 328.0, "wikitext2": 702.0} for row in table}
    out = Console(file=io.StringIO(), width=80)
    print_results({**RESULTS, "perplexity": table, "standard_error": errors}, out)
    lines = out.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("3,197,600" in line and "59.88%" in line for line in lines)
