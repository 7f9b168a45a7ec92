"""A metric is one function and one name: it starts agents, prunes, and can be compared."""

from collections.abc import Iterator

import pytest

from helpers.command import as_options, command, results, train
from pgprune.errors import PruningError
from pgprune.experiments.records import read_records
from pgprune.metrics import METRICS, Importance, metric
from pgprune.metrics.base import FINE
from pgprune.metrics.unit_sums import slice_sums, unit_sums


@metric("energy", FINE)
def energy(lm, windows, budget, seed):
    """Sums the squared weights of each unit."""
    return Importance(unit_sums(lm, lambda weight, dim: slice_sums(weight.detach() ** 2, dim)))


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(METRICS, "energy", energy)
    yield


@pytest.fixture
def few(arguments) -> list[str]:
    """Options for a tiny model and text."""
    small = arguments | {"evaluation_windows": 4, "prune_rate": 0.34}
    return as_options(small)


def test_an_agent_starts_from_it(few, tmp_path):
    few = [*few, "--init-samples=8", "--total-timesteps=1", "--quiet"]
    assert train(*few, "--init=energy", f"--output={tmp_path / 'run'}") == 0
    assert results(tmp_path / "run")["perplexity"].keys() >= {"initial", "masked"}


def test_it_is_a_method(few, tmp_path):
    run = tmp_path / "run"
    few = [*few, "--method-samples=8", f"--output={run}", "--quiet"]
    assert command("prune_baseline", *few, "--method=energy") == 0
    assert results(run)["method"] == "energy"
    with pytest.raises(PruningError, match="energy.*layers"):
        command("prune_baseline", *few, "--method=energy", "--granularity=layers")


def test_it_is_compared_with_others(compare, tmp_path):
    names = ["energy:method-samples=8", "random:method-samples=8"]
    assert compare(tmp_path, "--methods", *names, "--rates", "0.34", "--seeds=2") == 0
    seeds = {name: set() for name in names}
    for record in read_records(tmp_path / "comparison.jsonl"):
        seeds[record["method"]].add(record["seed"])
    assert list(seeds.values()) == [{0}, {0, 1}]  # only random depends on the seed


def test_a_name_that_is_not_registered_is_refused(few, tmp_path, monkeypatch):
    monkeypatch.delitem(METRICS, "energy")
    with pytest.raises(PruningError, match="method.*wanda-sp.*energy"):
        command("prune_baseline", *few, "--method=energy", f"--output={tmp_path / 'run'}")
