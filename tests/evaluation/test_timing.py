"""Pieces of work that are timed in turn, and the figures that come of it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.tiny import tiny_model
from pgprune.evaluation.timing import Clock, Spread, measure_in_turn, weight_bytes
from pgprune.surgery.random_models import SHAPES
from pgprune.utils.memory import memory_of

CPU = torch.device("cpu")


def test_works_take_turns_and_the_order_alternates():
    turns = []

    def work(name):
        return lambda clock: turns.append(name) or (len(turns), 1.0)

    works = {name: work(name) for name in ("dense", "pruned")}
    rounds, memory = measure_in_turn(works, 3, Clock(CPU))
    measured = len(turns) - 6  # times that memory was measured, work by work
    assert turns[:measured] == sorted(turns[:measured])
    assert turns[measured:] == ["dense", "pruned", "pruned", "dense", "dense", "pruned"]
    assert [seconds - measured for seconds, _ in rounds["dense"]] == [1, 4, 5]
    assert [seconds - measured for seconds, _ in rounds["pruned"]] == [2, 3, 6]
    assert memory.keys() == works.keys()


def test_a_speed_up_is_the_median_of_the_rounds_ratios():
    assert Spread.of_ratios([2.0, 4.0, 6.0], [1.0, 2.0, 2.0]) == Spread(2.0, 2.0, 2.5)
    assert str(Spread(2.0, 2.0, 2.5)) == "2.00±0.25"


def test_weights_count_tied_ones_once():
    sizes = {}
    for tied in (False, True):
        config = LlamaConfig(**SHAPES["100m"] | {"tie_word_embeddings": tied})
        with torch.device("meta"):
            sizes[tied] = weight_bytes(AutoModelForCausalLM.from_config(config))
    assert sizes[False] - sizes[True] == 4 * 32_000 * 768
    half = tiny_model("llama", torch.bfloat16)
    rotary = sum(buffer.numel() * buffer.element_size() for buffer in half.buffers())
    assert weight_bytes(half) - rotary == 2 * sum(p.numel() for p in half.parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_memory_of_a_piece_of_work_forgets_earlier_work():
    for megabytes in (40, 96, 64):  # beyond what malloc keeps of freed memory
        taken = memory_of(lambda size=megabytes: torch.ones(size, 2**18), CPU)
        assert megabytes - 1 <= taken / 2**20 <= megabytes + 3
