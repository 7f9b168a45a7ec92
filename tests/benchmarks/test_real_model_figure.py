"""The figure of docs/real_model.md: which rows it shows, as multiples of the dense perplexity."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def real_model(monkeypatch):
    """The script as a module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import real_model

    yield real_model
    sys.modules.pop("real_model", None)


def shipped(pruned: int, perplexity: float, dense: float = 10.0, **others):
    facts = {
        "model": "m",
        "agent": "auto",
        "granularity": "values+channels",
        "budget": "parameters",
    }
    facts |= {"repair": "levels", "asked_evaluations": 400, "prune_rate": {"requested": 0.2}}
    table = {"dense": {"c4": dense}, "pruned": {"c4": perplexity}}
    return facts | {"parameters": {"dense": 100, "pruned": pruned}, "perplexity": table} | others


def rival(method: str, perplexity: float):
    sizes = {"dense": 100, "pruned": 80}
    texts = {"dense": {"c4": 10.0}, "perplexity": {"c4": perplexity}}
    return {"method": method, "rate": 0.2, "parameters": sizes, **texts}


def test_of_several_rows_of_one_size_the_last_counts_as_a_mean_over_its_seeds(real_model):
    earlier = shipped(80, 30.0, loss="cross-entropy")
    seeds = [shipped(80, value, loss="kl") for value in (11.0, 13.0)]
    assert real_model._agents(
        [earlier, *seeds, shipped(60, 20.0, prune_rate={"requested": 0.4})]
    ) == {"auto": [(80, {"c4": pytest.approx(1.2)}), (60, {"c4": 2.0})]}


def test_of_a_rival_its_best_row_counts(real_model):
    rows = [rival("flap", 18.0), rival("flap:repair-samples=1024", 15.0), rival("ziplm", 12.0)]
    assert real_model._rivals(rows) == {"flap": [(80, {"c4": 1.5})], "ziplm": [(80, {"c4": 1.2})]}


@pytest.mark.usefixtures("painted")
def test_the_picture_is_written(real_model, tmp_path):
    real_model.plot(tmp_path / "all.png", [shipped(80, 12.0)], [rival("flap", 15.0)])
    assert (tmp_path / "all.png").read_bytes().startswith(b"\x89PNG")
