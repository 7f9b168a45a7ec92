"""Tokens that a model has no embedding for."""

import copy
import pickle

import pytest
import torch

from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.models.vocabulary import guard_vocabulary


def test_a_token_beyond_the_embeddings_is_named():
    model, tokenizer = tiny_model("llama"), letters_tokenizer()
    rows = model.get_input_embeddings().weight.shape[0]
    guard_vocabulary(model, tokenizer, "toy")
    assert not model.get_input_embeddings()._forward_pre_hooks  # its tokenizer fits
    tokenizer.add_tokens([f"<{number}>" for number in range(rows)])
    guard_vocabulary(model, tokenizer, "toy")
    model(torch.tensor([[0, rows - 1]]))
    for copied in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(PruningError, match=f"number {rows}, but the model 'toy'"):
            copied(torch.tensor([[0, rows]]))
