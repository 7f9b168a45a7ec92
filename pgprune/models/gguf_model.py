"""Reads what a GGUF file says of its model, and refuses what transformers would read wrong.

transformers dequantizes the weights. It skips tensors and keys that it does not know, so a model
could silently differ from what llama.cpp computes; everything in the file is accounted for here.
Sources: transformers, modeling_gguf_pytorch_utils.py; llama.cpp, convert_hf_to_gguf.py.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from pgprune.errors import PruningError, first_line
from pgprune.inspection.gguf_files import has_vocabulary, read_gguf
from pgprune.models.families import check_layers, family_of
from pgprune.models.rows import FAMILIES

ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of the divisors of the rotary frequencies, of Llama 3.1 and later."""

_COUNTS = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")
_RANGES = {"attention.layer_norm_rms_epsilon": (1e-20, 1.0), "rope.freq_base": (1.0, 1e12)}


@dataclass(frozen=True)
class GGUFModel:
    """A GGUF file's model without its weights.

    Attributes:
        config: of a known family.
        tokenizer: of the model.
        tensors: names of the tensors that are weights.
    """

    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    tensors: frozenset[str]


def read_gguf_model(path: Path) -> GGUFModel:
    """Reads configuration and tokenizer of a GGUF file; reading an unchanged file again is free.

    Raises:
        PruningError: a package is missing; the file is empty, cut short or no GGUF file; it has no
            tokenizer; or its architecture, or its rotary embedding, is none that can be read.
    """
    for package in ("gguf", "accelerate"):  # transformers asks for both
        if find_spec(package) is None:
            raise PruningError(f"a GGUF model needs the package {package}: pip install {package}")
    stat = path.stat()
    read = _read(path, stat.st_mtime_ns, stat.st_size)
    return GGUFModel(deepcopy(read.config), read.tokenizer, read.tensors)


@lru_cache(maxsize=2)  # a file takes seconds, and is asked for by a check and then by loading
def _read(path: Path, modified: int, size: int) -> GGUFModel:
    reader = read_gguf(path)
    name = reader.fields.get("general.architecture")
    architecture = "none" if name is None else str(name.contents())
    if not has_vocabulary(reader):
        raise PruningError(
            f"the GGUF file {str(path)!r} has no tokenizer; give one that was converted with it"
        )
    config = _config(path, architecture, reader.fields)
    _check_keys(path, architecture, reader, config)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    _check_rotary(path, architecture, reader.fields, config)
    if factors := tensors.pop(ROPE_FACTORS, None):
        config.rope_parameters = _llama3(path, config, torch.tensor(factors.data))
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(path.parent), gguf_file=path.name, trust_remote_code=False
        )
    except Exception as error:  # tokenizers raise errors of all types, bare Exception included
        raise PruningError(
            f"the tokenizer of the GGUF file {str(path)!r} cannot be read ({first_line(error)}); "
            "give the model as a Hugging Face directory"
        ) from error
    cut = reader.fields.get("tokenizer.ggml.pre")
    if cut is not None and cut.contents() == "smollm":
        # transformers knows llama.cpp's other names of how texts are cut, and takes GPT-2's here.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return GGUFModel(config, tokenizer, frozenset(tensors))


def _config(path: Path, architecture: str, fields: Mapping[str, Any]) -> PretrainedConfig:
    # Two keys that transformers skips.
    size = fields.get(f"{architecture}.attention.key_length")
    window = fields.get(f"{architecture}.attention.sliding_window")
    try:
        raw, _ = PretrainedConfig.get_config_dict(str(path.parent), gguf_file=path.name)
        family = raw.pop("model_type")
        raw |= {} if size is None else {"head_dim": int(size.contents())}
        if window is not None:
            raw.setdefault("sliding_window", int(window.contents()))
        check_layers(raw, f"GGUF file {str(path)!r}")
        config = AutoConfig.for_model(family, **raw) if family in FAMILIES else None
    except PruningError:
        raise
    except Exception as error:  # configuration classes raise errors of many types
        if architecture in FAMILIES:
            raise PruningError(
                f"the keys of the GGUF file {str(path)!r} describe no model that can be built "
                f"({first_line(error)}); copy it again, or give the model as a Hugging Face "
                "directory"
            ) from error
        known = f"transformers cannot read it: {first_line(error)}"
        config = None
    else:
        known = f"known families: {', '.join(FAMILIES)}"
    if config is None:
        raise PruningError(
            f"the GGUF file {str(path)!r} is of the architecture {architecture!r}, which is not "
            f"supported ({known}); give the dense model of a known family"
        )
    family_of(config)  # raises for variants that cannot be pruned
    return config


def _check_keys(path: Path, architecture: str, reader: Any, config: PretrainedConfig) -> None:
    """Refuses keys that are missing or odd, for which transformers has numbers of its own."""
    fields = {key.removeprefix(f"{architecture}."): one for key, one in reader.fields.items()}
    said = f"the GGUF file {str(path)!r} "
    if missing := [key for key in _COUNTS if key not in fields]:
        raise PruningError(f"{said}lacks the key {architecture}.{missing[0]}; copy it again")
    for key, (least, most) in _RANGES.items():
        value = fields[key].contents() if key in fields else least
        if not (isinstance(value, float) and least <= value <= most):
            raise PruningError(
                f"{said}has {value!r} for {architecture}.{key}, not a number from {least:g} to "
                f"{most:g}; copy it again"
            )
    names = (tensor.name.split(".") for tensor in reader.tensors)
    layers = {name[1] for name in names if name[0] == "blk"}
    if len(layers) != config.num_hidden_layers:
        raise PruningError(
            f"{said}has weights of {len(layers)} layers, but says {config.num_hidden_layers} "
            f"({architecture}.block_count); copy it again"
        )


def _check_rotary(
    path: Path, architecture: str, fields: Mapping[str, Any], config: PretrainedConfig
) -> None:
    """Refuses a scaled or partial rotary embedding, which transformers would read as plain."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    turned = fields.get(f"{architecture}.rope.dimension_count")
    if turned is not None and int(turned.contents()) != size:
        raise PruningError(
            f"the GGUF file {str(path)!r} turns {turned.contents()} of the {size} dimensions of a "
            "head by their position, which transformers does not read from GGUF; give the model as "
            "a Hugging Face directory"
        )
    field = fields.get(f"{architecture}.rope.scaling.type")
    kind = "none" if field is None else field.contents()
    if kind != "none":
        raise PruningError(
            f"the GGUF file {str(path)!r} scales its rotary embedding ({kind}), which transformers "
            "does not read from GGUF; give the model as a Hugging Face directory"
        )


def _llama3(path: Path, config: PretrainedConfig, factors: Tensor) -> dict[str, Any]:
    """Finds the ``llama3`` scaling of the rotary embedding that has such factors, (head_dim / 2,).

    A GGUF file holds the factors only. All of Meta's models share three of the four numbers, and
    the fourth is the largest factor.
    """
    found = config.rope_parameters | {
        "rope_type": "llama3",
        "factor": float(factors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled = deepcopy(config)
    scaled.rope_parameters = found
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](scaled, torch.device("cpu"))  # (head_dim / 2,)
    width = 2 * len(frequencies)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, width, 2) / width)
    if factors.shape != frequencies.shape or not torch.allclose(
        plain / frequencies, factors.float(), rtol=1e-3
    ):
        raise PruningError(
            f"the GGUF file {str(path)!r} scales its rotary embedding in a way that is not known; "
            "give the model as a Hugging Face directory"
        )
    return found


def check_tensors(path: Path, tensors: frozenset[str], loaded: int) -> None:
    """Checks that all tensors of a GGUF file have become weights of the model.

    Args:
        path: the file.
        tensors: names of its weights.
        loaded: weights of the model, tied ones once.

    Raises:
        PruningError: the file has others, which transformers has skipped.
    """
    if len(tensors) != loaded:
        extra = sorted(name for name in tensors if name.endswith(".bias")) or sorted(tensors)
        raise PruningError(
            f"the GGUF file {str(path)!r} has {len(tensors)} weights, but transformers reads "
            f"{loaded} of them (look at {extra[0]}); give the model as a Hugging Face directory"
        )
