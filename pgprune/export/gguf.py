"""Writes a pruned model as one GGUF file, for llama.cpp, Ollama and LM Studio.

llama.cpp's architecture ``deci`` is a LLaMA whose layers differ in their numbers of heads and
channels, with biases where there are any: it holds LLaMA, Mistral, Qwen2 and Seed-OSS. Its rotary
embedding turns neighbouring rows of a head, so query and key rows are put in that order. Layers
without attention or MLP come as ghosts of zeros, because llama.cpp refuses or, silently,
miscomputes some of them. The other architectures have equal layers only (``gguf_layouts``).
"""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from pgprune.errors import PruningError
from pgprune.export.gguf_layouts import NAMES, Layout, layout_of, rope_of
from pgprune.export.gguf_vocabulary import write_vocabulary
from pgprune.hub_code.fused import Fused, close_weights
from pgprune.inspection.gguf_files import copy_vocabulary, load_gguf
from pgprune.masking.units import GRANULARITIES
from pgprune.models.families import family_of
from pgprune.models.shapes import LayerShape
from pgprune.runs.finished import LoadedRun
from pgprune.runs.model_card import base_name
from pgprune.surgery.portable import ghost_channels, portable_layers
from pgprune.surgery.pruned_layer import PrunedLayer

_FILLED = (
    "the heads of llama.cpp's {name} fill the width, so none can be pruned; choose --granularity "
    "channels, or --format hf"
)
_FIXED_ROPE = ("default", "linear", "llama3")  # the same frequencies for texts of any length


@torch.no_grad()
def write_gguf(loaded: LoadedRun, path: Path, vocabulary: Mapping[str, Any] | None = None) -> int:
    """Writes the model that a run has pruned; returns the file's parameters, tied ones once.

    Matrices are written in the model's number format, the rest in float32; of float64 there is
    none, float32 takes its place.

    Args:
        loaded: the run.
        path: the new file.
        vocabulary: the tokenizer as ``read_vocabulary`` returns it; None takes the model's own.

    Raises:
        PruningError: llama.cpp has no architecture for the model or for what is left of it, or the
            tokenizer cannot be written.
        OSError: the disk is full or refuses.
    """
    model, units = loaded.model, loaded.units
    config = model.config
    layout, factors = layout_of(config), _rope_factors(model)
    # llama.cpp needs attention and MLP in every layer: zeros take the place of what is gone.
    ghosts = ghost_channels(loaded.round_to, units.shapes[0].channels)
    layers = portable_layers(model, units, loaded.mask, ghosts, loaded.repair)
    _check_layers(layers, layout, units.shapes[0])
    gguf = load_gguf()
    with closing(gguf.GGUFWriter(path, layout.name)) as writer:
        writer.add_name(f"{base_name(loaded.run)}, pruned")
        writer.add_file_type(_file_type(model.dtype))
        _write_shapes(writer, config, layers, units.shapes[0])
        layout.write_values(writer, config, [layer.index for layer in layers])
        _write_vocabulary(writer, loaded.tokenizer, config.vocab_size, vocabulary)
        parameters = 0
        for key, weight in _tensors(model, layers, units.shapes[0], layout):
            parameters += weight.numel()
            _add(writer, key, weight)
        if factors is not None:
            _add(writer, "rope_freqs.weight", factors)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    return parameters


def check_gguf(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: Mapping[str, Any] | None = None,
) -> None:
    """Checks, before any long work, that there can be a GGUF file of a model.

    Raises:
        PruningError: as ``write_gguf``, but for what depends on the mask.
    """
    _rope_factors(model)
    # A writer without a file: it takes the same keys and refuses the same ones.
    writer = load_gguf().GGUFWriter(None, layout_of(model.config).name)
    _write_vocabulary(writer, tokenizer, model.config.vocab_size, vocabulary)


def holds_biases(config: PretrainedConfig) -> bool:
    """Whether the file's layers may have biases that those of the dense model lack.

    Raises:
        PruningError: as ``check_gguf``.
    """
    return layout_of(config).biases


def check_scope(config: PretrainedConfig, granularity: str, scope: str) -> None:
    """Checks, before a run begins, that its layers will be as equal as the file needs them.

    Args:
        config: of the dense model.
        granularity: of the run; where whole layers go, the others stay equal.
        scope: of the run.

    Raises:
        PruningError: they will not, or as ``check_gguf``.
    """
    layout = layout_of(config)
    if layout.filled and {"heads", "values"} & set(GRANULARITIES[granularity]):
        raise PruningError(_FILLED.format(name=layout.name))
    if not layout.varied and granularity != "layers" and scope != "uniform":
        raise PruningError(
            f"the layers of llama.cpp's {layout.name} are all equal, which --scope {scope} does "
            "not give; choose --scope uniform, or export the finished run by export.py --format "
            "gguf --uniform"
        )


def context_length(config: PretrainedConfig) -> int:
    """Returns how long a text may be for llama.cpp to read it as the model does.

    Most have no sliding window, which makes no difference until the text is longer than the window.
    """
    longest = int(config.max_position_embeddings)
    if layout_of(config).sliding:
        return longest
    types = getattr(config, "layer_types", None) or ["sliding_attention"]
    window = getattr(config, "sliding_window", None) if "sliding_attention" in types else None
    return min(longest, window or longest)


def _write_vocabulary(
    writer: Any, tokenizer: PreTrainedTokenizerBase, size: int, vocabulary: Mapping[str, Any] | None
) -> None:
    if vocabulary is None:
        write_vocabulary(writer, tokenizer, size)
    else:
        copy_vocabulary(writer, vocabulary, size)


def _check_layers(layers: list[PrunedLayer], layout: Layout, dense: LayerShape) -> None:
    """Refuses layers that an architecture cannot hold."""
    sizes = {(layer.kv_heads, layer.channels) for layer in layers}
    if len(sizes) > 1 and not layout.varied:
        raise PruningError(
            f"the layers of llama.cpp's {layout.name} are all equal, but here they keep "
            f"{min(sizes)[0]} to {max(sizes)[0]} kv heads and {min(c for _, c in sizes):,} to "
            f"{max(c for _, c in sizes):,} channels; export with --uniform"
        )
    if layout.filled and max(sizes)[0] != dense.kv_heads:
        raise PruningError(_FILLED.format(name=layout.name))
    biases = any(name.endswith(".bias") for layer in layers for name in layer.weights)
    if biases and not layout.biases:
        raise PruningError(
            f"llama.cpp's {layout.name} has no biases, but the model has; choose --format hf"
        )


def _rope_factors(model: PreTrainedModel) -> Tensor | None:
    """Returns divisors of the rotary embedding's plain frequencies, (head_dim / 2,) or None.

    Raises:
        PruningError: no fixed numbers describe the embedding.
    """
    config, layout, rope = model.config, layout_of(model.config), rope_of(model.config)
    if not rope:  # learned positions
        return None
    kind, base = rope["rope_type"], rope["rope_theta"]
    if kind not in _FIXED_ROPE or (kind != "default" and not layout.scaled):
        raise PruningError(
            f"the rotary embedding of the type {kind!r} cannot be written for llama.cpp's "
            f"{layout.name}; choose --format hf"
        )
    if kind == "default":
        return None
    rotary: Any = type(model.get_submodule("model.rotary_emb"))
    frequencies: Tensor = rotary(config).inv_freq  # exact, whatever the model's number format
    width = 2 * len(frequencies)
    # RoPE turns pair i by base^(-2i/d) per position; a scaled RoPE divides that by a factor.
    plain = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float) / width)
    return plain / frequencies


def _write_shapes(
    writer: Any, config: PretrainedConfig, layers: list[PrunedLayer], shape: LayerShape
) -> None:
    """Writes the sizes that llama.cpp builds the layers from."""
    heads = [layer.kv_heads * shape.query_heads_per_group for layer in layers]
    kv_heads = [layer.kv_heads for layer in layers]
    channels = [layer.channels for layer in layers]
    equal = all(len(set(counts)) == 1 for counts in (heads, kv_heads, channels))
    writer.add_block_count(len(layers))
    writer.add_head_count(heads[0] if equal else heads)
    writer.add_head_count_kv(kv_heads[0] if equal else kv_heads)
    writer.add_feed_forward_length(channels[0] if equal else channels)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    if rope := rope_of(config):
        turned = int(shape.head_dim * rope.get("partial_rotary_factor", 1.0))
        writer.add_rope_dimension_count(turned)
        writer.add_rope_freq_base(rope["rope_theta"])
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_embedding_length(config.hidden_size)
    writer.add_context_length(context_length(config))
    writer.add_vocab_size(config.vocab_size)


def _tensors(
    model: PreTrainedModel, layers: list[PrunedLayer], shape: LayerShape, layout: Layout
) -> Iterator[tuple[str, Tensor]]:
    """Yields all weights by llama.cpp's names, tied ones once."""
    family = family_of(model.config)
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{family.layers}."):
            yield _renamed(name, parameter, layout)
    turned = (family.query, family.key) if layout.turned else ()
    for new, layer in enumerate(layers):
        weights = dict(layer.weights)
        for row in family.fused:  # parts follow each other, as matrices of (outputs, inputs)
            close_weights(weights, f"{row.path}.", Fused(row.path, row.parts), None)
        for name, weight in weights.items():
            if name.rpartition(".")[0] in turned:
                weight = _interleaved(weight, shape.head_dim)
            own, weight = _renamed(name, weight, layout)
            yield f"blk.{new}.{own}", weight


def _renamed(name: str, weight: Tensor, layout: Layout) -> tuple[str, Tensor]:
    """Returns a parameter's name and content in the file."""
    module, _, kind = name.rpartition(".")
    own = layout.names.get(module) or NAMES[module]
    return f"{own}.{kind}", weight + layout.norm_shift if own.endswith("norm") else weight


def _interleaved(weight: Tensor, head_dim: int) -> Tensor:
    """Puts rows together that a rotary embedding turns together: (h * d, ...) -> (h * d, ...).

    Hugging Face turns row i of a head with row i + d / 2, llama.cpp row 2 i with row 2 i + 1.
    """
    halves = weight.unflatten(0, (-1, 2, head_dim // 2))  # (h, 2, d / 2, ...)
    return halves.transpose(1, 2).flatten(0, 2)


def _file_type(dtype: torch.dtype) -> int:
    """Returns llama.cpp's number for the number format of the matrices."""
    types = load_gguf().LlamaFileType
    named = {torch.float16: types.MOSTLY_F16, torch.bfloat16: types.MOSTLY_BF16}
    return int(named.get(dtype, types.ALL_F32))


def _add(writer: Any, key: str, weight: Tensor) -> None:
    """Adds a tensor to the file; matrices keep a half precision, the rest is float32."""
    if weight.ndim == 1 or weight.dtype == torch.float64:
        weight = weight.float()
    weight = weight.detach().contiguous()
    if weight.dtype == torch.bfloat16:  # which numpy lacks
        kind = load_gguf().GGMLQuantizationType.BF16
        writer.add_tensor(key, weight.view(torch.uint8).numpy(), raw_dtype=kind)
    else:
        writer.add_tensor(key, weight.numpy())
