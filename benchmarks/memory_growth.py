"""By how much the memory of a process grows when it loads a model and reads a batch of texts.

Weights and the cache of keys and values are what stays; what a pass through the model takes on top
is given back before memory is measured.
"""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

import pgprune
from pgprune.losses.tokens import next_token_logits
from pgprune.utils.memory import give_back, memory_now, read_once


def memory_growth(model: PreTrainedModel, batch: int, length: int) -> int:
    """Measures the growth of memory of a new process, in bytes.

    Args:
        model: on the CPU; it is saved, and loaded from there.
        batch: texts that are read, 0 for none.
        length: tokens of each.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, get_context("spawn")) as new,
    ):
        model.save_pretrained(folder)
        return new.submit(_growth, folder, batch, length).result()


@torch.inference_mode()
def _growth(folder: str, batch: int, length: int) -> int:
    pgprune.register()
    # A first time, for what libraries keep of any model and any pass through it.
    _loaded(folder, min(batch, 1), 2)
    give_back()
    before = memory_now(torch.device("cpu"))
    held = _loaded(folder, batch, length)
    give_back()
    after = memory_now(torch.device("cpu"))
    del held
    return after - before


def _loaded(folder: str, batch: int, length: int) -> tuple[PreTrainedModel, DynamicCache]:
    """Loads a model, and the cache of a batch that it has read."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    read_once(model.parameters())
    return model, cache_of(model, batch, length)


@torch.inference_mode()
def cache_of(model: PreTrainedModel, batch: int, length: int) -> DynamicCache:
    """Reads a batch of texts of some length; returns the cache, which is empty without a batch."""
    cache = DynamicCache(config=model.config)
    if batch:
        next_token_logits(model, torch.zeros(batch, length, dtype=torch.int64), cache)
    return cache
