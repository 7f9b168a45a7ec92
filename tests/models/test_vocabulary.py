"""Tokens that a model has no embedding for, and tokens that are drawn at random."""

import copy
import pickle

import pytest
import torch

from helpers.gguf_models import byte_tokenizer, small_model
from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.models.load import ModelConfig, check_model
from pgprune.models.vocabulary import check_dropout, guard_vocabulary


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


def test_a_tokenizer_that_cuts_words_at_random_is_refused(tmp_path):
    tokenizer = byte_tokenizer(dropout=0.1)
    with pytest.raises(PruningError, match="model 'toy' .* BPE dropout of 0.1; write null"):
        check_dropout(tokenizer, "toy")
    for harmless in (byte_tokenizer(), byte_tokenizer(dropout=0.0), letters_tokenizer()):
        check_dropout(harmless, "toy")
    small_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PruningError, match="cuts words at random"):
        check_model(ModelConfig(str(tmp_path), device="cpu"))
