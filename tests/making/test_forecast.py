"""What a make will take, from what was measured."""

import math
from dataclasses import replace

import pytest

from pgprune.errors import ResourceError
from pgprune.making import recovery
from pgprune.making.config import MakeConfig
from pgprune.making.forecast import Forecast
from pgprune.making.steps import steps, total_seconds

FORECAST = Forecast(
    seconds=2.0,
    masked_seconds=1.5,
    bfloat16_seconds=2.5,
    parameters=1000,
    kept=500,
    itemsize=4,
    evaluations=400,
    fitted=4096,
    judged=2048,
    window=512,
)


def test_the_search_costs_its_evaluations_and_what_is_fitted_and_judged():
    search, export, evaluation = steps(FORECAST, MakeConfig())
    assert search.seconds == 400 * 1.5 + 4 * 4 * 2.0 + 4 * 2 * 2.0
    assert search.memory == 4 * 1000 and export.memory == 4 * 1500
    assert evaluation.seconds == 2 * 1.5


def test_a_recovery_takes_the_time_that_it_is_given():
    planned = steps(FORECAST, MakeConfig(recovery_minutes=10, formats=("hf", "gguf")))
    assert [step.name for step in planned][1:4] == ["recovery", "export hf", "export gguf"]
    assert planned[1].seconds == 10 * 60 + 2 * 2 * 2.0
    assert total_seconds(planned) == sum(step.seconds for step in planned)


@pytest.mark.parametrize("minutes", [0.01, 10, 100, 10_000])
def test_blocks_and_held_out_windows_get_a_share_of_the_time_and_the_model_the_rest(minutes):
    plan = recovery.plan(FORECAST, minutes)
    assert plan["local_windows"] == 0 or 16 <= plan["local_windows"] <= 128
    assert 4 <= plan["validation_windows"] <= 32
    updates = math.ceil(plan["tokens"] / (16 * 512))
    assert 1 <= math.ceil(updates / plan["validate_every"]) <= 15
    alone = FORECAST.recovery_tokens(60 * minutes)
    assert plan["tokens"] <= alone
    assert minutes < 10 or plan["tokens"] >= 0.6 * alone


def test_products_in_bfloat16_teach_more_where_they_are_faster():
    faster = replace(FORECAST, bfloat16_seconds=0.5)
    assert (FORECAST.precision, faster.precision) == ("auto", "bfloat16")
    assert faster.recovery_tokens(60) == pytest.approx(4 * FORECAST.recovery_tokens(60), abs=4)
    assert recovery.plan(faster, 100)["tokens"] > 3 * recovery.plan(FORECAST, 100)["tokens"]


@pytest.mark.parametrize(
    ("free", "trained"), [(20_000, "layers"), (7_000, "lora"), (None, "layers")]
)
def test_memory_decides_which_weights_are_trained(free, trained, monkeypatch):
    monkeypatch.setattr(recovery, "free_memory", lambda device: free)
    assert FORECAST.training_memory("lora") == 6_000
    assert FORECAST.training_memory("layers") == 14_000
    assert recovery.trained(FORECAST, None) == trained


def test_too_little_memory_names_what_to_lower(monkeypatch):
    monkeypatch.setattr(recovery, "free_memory", lambda device: 5_000)
    with pytest.raises(ResourceError, match="--dtype bfloat16"):
        recovery.trained(FORECAST, None)
