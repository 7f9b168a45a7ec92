"""What a comparison is made of: cells and their commands, records, and the order of rows."""

import math

import pytest

from pgprune.errors import PruningError
from pgprune.experiments.cells import RANDOM, Cell, parts
from pgprune.experiments.plan import (
    ComparedConfig,
    ComparisonConfig,
    agent_cells,
    all_methods,
    comparison_cells,
)
from pgprune.experiments.records import adapted, missing, read_records
from pgprune.experiments.row_tables import tables
from pgprune.experiments.rows import best_forward, columns_of, ranked, rows_of
from pgprune.methods import METHODS
from pgprune.utils.jsonl import add_line, close_line


def cells_of(rates=(0.3,), methods=("all",), models=("builtin",), **config):
    compared = ComparedConfig(methods=methods, rates=rates, models=models)
    return comparison_cells(compared, ComparisonConfig(**config))


def test_all_is_every_method_and_the_agent():
    cells, methods = cells_of(rates=(0.3, 0.5)), all_methods()
    assert {cell.method for cell in cells} == set(methods) > set(METHODS)
    seeds = {method: {c.seed for c in cells if c.method == method} for method in methods}
    assert seeds["reinforce"] == seeds["bonsai"] == {0, 1, 2}
    assert seeds["osscar"] == seeds["slicegpt"] == {0}
    assert len(cells_of(seeds_for_all=True)) == 3 * len(methods)
    assert len({cell.path for cell in cells}) == len(cells)


def test_a_benchmark_has_random_masks_before_the_agents_of_a_task():
    cells = agent_cells(["auto", "auto"], ["builtin:0.5", "builtin:.30:layers"], range(2))
    assert [(cell.method, cell.task) for cell in cells[:4]] == [
        (RANDOM, "builtin:0.5"),
        ("auto", "builtin:0.5"),
        (RANDOM, "builtin:0.3:layers"),
        ("auto", "builtin:0.3:layers"),
    ]
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4


def test_a_cell_is_a_command():
    def words(cell, text):
        return set(cell.words(ComparisonConfig(), text, cell.options))

    cell = Cell("llm-pruner:protect-layers=off,taylor=vector", "builtin", 0.3, 1)
    found = words(cell, {"calibration": "x.txt", "batch_size": 4})
    assert {"--method=llm-pruner", "--prune-rate=0.3", "--seed=1", "--batch-size=4"} < found
    assert {"--no-protect-layers", "--taylor=vector"} < found
    assert "--calibration=x.txt" not in found  # the built-in model has its own
    lengths = cell.words(ComparisonConfig(), {"evaluation_lengths": (128, 2048)}, {})
    assert "--evaluation-lengths 128 2048 --" in " ".join(lengths)
    found = words(Cell("reinforce", "reinforce", 0.3, 0), {"calibration": "x"})
    assert {"--agent=reinforce", "--total-timesteps=2000", "--calibration=x"} < found


def test_what_needs_gradients_is_known():
    needs = {method: Cell(method, "builtin", 0.3, 0).needs for method in all_methods()}
    assert needs["llm-pruner"] == needs["reinforce:init=llm-pruner"] == "backward"
    assert needs["reinforce"] == needs["sleb"] == "forward"
    assert parts("reinforce:init=random,masks-per-step=4") == (
        "reinforce",
        {"init": "random", "masks_per_step": "4"},
    )


def test_two_models_of_one_name_are_refused(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "model").mkdir(parents=True)
    models = tuple(str(tmp_path / place / "model") for place in ("one", "two"))
    with pytest.raises(PruningError, match="2 models are called 'model'"):
        cells_of(models=models)


def test_a_method_does_not_choose_the_windows_that_all_are_compared_on():
    for option in ("sequence-length=256", "evaluation-lengths=64", "evaluation-windows=9"):
        field = option.partition("=")[0].replace("-", "_")
        with pytest.raises(PruningError, match=f"{field} in method .* chosen by the comparison"):
            cells_of(methods=("flap", f"wanda-sp:{option}"))


def test_a_torn_line_does_not_count_and_harms_no_other(tmp_path):
    path = tmp_path / "comparison.jsonl"
    cells = [Cell("random", "builtin", 0.3, seed) for seed in (0, 1)]
    old = {"model": "builtin", "method": "random", "rate": 0.3, "repair": "none", "mask": "m"}
    path.write_text('{"model": "buil')
    close_line(path)
    add_line(path, old | {"seed": 1, "perplexity": {"code": math.inf}})
    expected = old | {"seed": 1, "perplexity": {"code": None}, "task": "builtin:0.3"}
    assert read_records(path) == [expected]
    assert missing(cells, read_records(path), ["bias"]) == [
        (cells[0], ["none", "bias"]),
        (cells[1], ["bias"]),
    ]
    sliced = expected | {"mask": None}  # no mask, nothing to repair
    assert missing(cells[1:], [sliced], ["bias"]) == []
    failed = {name: expected[name] for name in ("method", "task", "seed", "repair")}
    assert missing(cells[1:], [failed | {"error": "no"}], ["bias"]) == []
    assert missing(cells[1:], [failed | {"error": "no"}], ["bias"], retry=True) != []


def test_records_of_older_benchmarks_are_read():
    old = {"agent": "random", "task": "m:0.5:layers", "seed": 1, "curve": []}
    new = {"method": RANDOM, "model": "m", "rate": 0.5, "repair": "none"}
    assert adapted(old) == new | {"task": "m:0.5:layers", "seed": 1, "curve": []}
    assert adapted(adapted(old)) == adapted(old)


def test_rows_are_ordered_and_the_best_forward_only_row_is_bold():
    def record(method, value, rate=0.3, **more):
        return {
            "model": "builtin",
            "method": method,
            "task": f"builtin:{rate}",
            "rate": rate,
            "seed": 0,
            "repair": "none",
            "needs": Cell(method, "builtin", rate, 0).needs,
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
