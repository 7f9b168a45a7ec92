"""Loads tokenizers; refuses tokens without an embedding, and tokenizers that draw at random."""

from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune.errors import PruningError
from pgprune.models.rows import FAMILIES
from pgprune.models.source import unreadable


class _Vocabulary:
    """Called with the input of the embeddings before they are; a class, so that models copy.

    On a GPU, a token that they lack would end the process.
    """

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size

    def __call__(self, module: Any, inputs: tuple[Tensor, ...]) -> None:
        largest = int(inputs[0].max()) if inputs and inputs[0].numel() else 0
        if largest >= self._size:
            raise PruningError(
                f"the text has a token of the number {largest:,}, but the model {self._name!r} has "
                f"embeddings of {self._size:,}: its tokenizer is of another model, or was added to"
            )


def guard_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Makes a model refuse such tokens, if its tokenizer has any.

    A model whose tokenizer fits is left alone: a look at every token would make a GPU wait.

    Args:
        model: changed in place.
        tokenizer: of the model.
        name: of the model, for the error.
    """
    embeddings: Any = model.get_input_embeddings()
    size = embeddings.weight.shape[0]
    if max(tokenizer.get_vocab().values(), default=0) >= size:
        embeddings.register_forward_pre_hook(_Vocabulary(name, size))


def begin_windows(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> PreTrainedTokenizerBase:
    """Lets windows of tokens begin with BOS if the family of a model, pruned or not, needs it."""
    kind = str(config.model_type)
    family = FAMILIES.get(kind.removeprefix("pgprune_"))
    if family is not None and family.bos:
        tokenizer.windows_begin_with_bos = True
    return tokenizer


def check_dropout(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuses a tokenizer that cuts the same text in another way each time.

    Args:
        tokenizer: of the model.
        name: of the model, for the error.

    Raises:
        PruningError: its BPE has a dropout.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if dropout := getattr(model, "dropout", None):
        raise PruningError(
            f"the tokenizer of the model {name!r} cuts words at random, with a BPE dropout of "
            f"{dropout:g}; write null for dropout in its tokenizer.json"
        )


def load_tokenizer(source: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model, without running code of its own.

    Args:
        source: a directory or a hub id.
        config: of the model.

    Raises:
        PruningError: it cannot be read, or cuts words at random.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer("a")  # some odd values matter only then
    except Exception as error:  # tokenizers raise errors of all types, bare Exception included
        raise PruningError(unreadable(source, "tokenizer", error)) from error
    check_dropout(tokenizer, source)
    tokenizer.init_kwargs.pop("auto_map", None)  # nothing that is made of it may ask for it
    return begin_windows(tokenizer, config)
