"""What a comparison is made of: cells and their commands, records, and the order of rows."""

import math

import pytest

from pgprune.errors import PruningError
from pgprune.experiments.method_cells import ALL, Cell, ComparisonConfig, needs, parts, plan
from pgprune.experiments.method_records import add_record, missing, read_records
from pgprune.experiments.method_report import tables
from pgprune.experiments.method_rows import best_forward, columns_of, ranked, rows_of
from pgprune.methods import METHODS
from pgprune.utils.jsonl import close_line


def test_all_is_every_method_and_the_agent():
    cells = plan(["builtin"], ["all"], [0.3, 0.5], ComparisonConfig())
    assert {cell.method for cell in cells} == set(ALL) > set(METHODS)
    seeds = {method: {c.seed for c in cells if c.method == method} for method in ALL}
    assert seeds["reinforce"] == seeds["bonsai"] == {0, 1, 2}
    assert seeds["osscar"] == seeds["slicegpt"] == {0}
    every = plan(["builtin"], ["all"], [0.3], ComparisonConfig(seeds_for_all=True))
    assert len(every) == 3 * len(ALL)
    assert len({cell.path for cell in cells}) == len(cells)


def test_a_cell_is_a_command():
    cell = Cell("builtin", "llm-pruner:protect-layers=off,taylor=vector", 0.3, 1)
    words = cell.words(ComparisonConfig(), {"calibration": "x.txt", "batch_size": 4})
    assert {"--method=llm-pruner", "--prune-rate=0.3", "--seed=1", "--batch-size=4"} < set(words)
    assert {"--no-protect-layers", "--taylor=vector"} < set(words)
    assert "--calibration=x.txt" not in words  # the built-in model has its own
    other = Cell("reinforce", "reinforce", 0.3, 0).words(ComparisonConfig(), {"calibration": "x"})
    assert {"--agent=reinforce", "--total-timesteps=2000", "--calibration=x"} < set(other)


def test_what_needs_gradients_is_known():
    assert needs("llm-pruner") == needs("reinforce:init=llm-pruner") == "backward"
    assert needs("reinforce") == needs("sleb") == "forward"
    assert parts("reinforce:init=random,masks-per-step=4") == (
        "reinforce",
        {"init": "random", "masks_per_step": "4"},
    )


def test_two_models_of_one_name_are_refused(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "model").mkdir(parents=True)
    models = [str(tmp_path / place / "model") for place in ("one", "two")]
    with pytest.raises(PruningError, match="2 models are called 'model'"):
        plan(models, ["flap"], [0.3], ComparisonConfig())


def test_a_torn_line_does_not_count_and_harms_no_other(tmp_path):
    cells = [Cell("builtin", "random", 0.3, seed) for seed in (0, 1)]
    base = {"model": "builtin", "method": "random", "rate": 0.3, "repair": "none", "mask": "m"}
    (tmp_path / "comparison.jsonl").write_text('{"model": "buil')
    close_line(tmp_path / "comparison.jsonl")
    add_record(tmp_path, base | {"seed": 1, "perplexity": {"code": math.inf}})
    assert read_records(tmp_path) == [base | {"seed": 1, "perplexity": {"code": None}}]
    assert missing(cells, read_records(tmp_path), ["bias"]) == [
        (cells[0], ["none", "bias"]),
        (cells[1], ["bias"]),
    ]
    sliced = base | {"seed": 1, "mask": None}  # no mask, nothing to repair
    assert missing(cells[1:], [sliced], ["bias"]) == []


def test_rows_are_ordered_and_the_best_forward_only_row_is_bold():
    def record(method, value, rate=0.3, **more):
        return {
            "model": "builtin",
            "method": method,
            "rate": rate,
            "seed": 0,
            "repair": "none",
            "needs": needs(method),
            "granularity": "heads+channels",
            "perplexity": {"code": value},
            "dense": {"code": 10.0},
            "parameters": {"dense": 100, "pruned": 70},
            "seconds": 1.0,
            "memory_bytes": 2**20,
        } | more

    records = [
        record("fasp", 30.0),
        record("flap", 20.0),
        record("llm-pruner", 15.0),
        record("wanda-sp", 11.0),
    ]
    records += [record(name, 40.0, 0.4) for name in ("fasp", "llm-pruner")]
    records.append(record("flap", 45.0, 0.4) | {"perplexity": {"code": None}})
    rows = rows_of(records)
    columns = columns_of(rows)
    order = [row.method for row in ranked(rows, columns)]
    assert order == ["llm-pruner", "fasp", "flap", "wanda-sp"]  # infinite, then incomplete
    assert best_forward(rows, columns).method == "fasp"
    text = tables(records)
    assert "Best forward-only row on average: fasp, " in text
    assert f"is {math.sqrt(30 * 40):.4g}" in text
    assert "| **fasp** | **none** | forward | 30.00 | 40.00 |" in text
    assert "| flap | none | forward | 20.00 | ∞ |" in text
    assert "| llm-pruner | none | backward |" in text
