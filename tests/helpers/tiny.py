"""Small things that the tests are made of: random models of every family, units, a problem."""

import copy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from helpers.dense import CONFIGS, VOCABULARY
from helpers.mixtures import MIXTURES
from pgprune.budget.budget import Budget
from pgprune.budget.problem import Problem
from pgprune.data.stream import CalibrationStream, DataConfig
from pgprune.data.windows import TextWindows
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import Group, PruningUnits
from pgprune.models.shapes import LayerShape

ID = "pgprune/LLMPruning-v0"
FEW = ("llama", "mistral", "qwen2", "qwen3", "opt")
"""Families for what does not depend on the family's own code."""
PATHS = {
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc2"),
    "phi": ("model.layers", "self_attn.dense", "mlp.fc2"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "other": ("model.layers", "self_attn.o_proj", "mlp.down_proj"),
}
"""Where each family keeps its layers, and in them the projections whose inputs are masked."""


def tiny_model(family: str, dtype: torch.dtype = torch.float64, **changes) -> PreTrainedModel:
    """A random model whose every weight and bias matters, always the same one."""
    made = _made(family, **changes) if changes else copy.deepcopy(_usual(family))
    return made.to(dtype)


def _made(family: str, **changes) -> PreTrainedModel:
    config = copy.deepcopy((CONFIGS | MIXTURES)[family])
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = "norm.weight" in name or ".ln_" in name and name.endswith("weight")
                parameter.normal_(mean=1 if is_norm else 0, std=0.3)
    return model.eval()


_usual = cache(_made)  # a copy takes half the time


def exact_norms(model: PreTrainedModel, heads: bool = False) -> PreTrainedModel:
    """The same model with norms in its own precision, where stock ones compute in float32.

    Norms of queries and keys stay as they are unless ``heads``.
    """
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            width = len(norm.weight) if hasattr(norm, "variance_epsilon") else 0
            if width == model.config.hidden_size or (width and heads):
                exact = nn.RMSNorm(width, norm.variance_epsilon)
                exact.weight = norm.weight
                setattr(parent, name, exact)
    return model


def tokens(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, length), generator=generator)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return model.get_submodule(PATHS.get(model.config.model_type, PATHS["other"])[0])


def projections_of(model: PreTrainedModel, layer: int) -> tuple[nn.Linear, nn.Linear]:
    """The attention output projection and the MLP down projection."""
    _, output, down = PATHS.get(model.config.model_type, PATHS["other"])
    module = layers_of(model)[layer]
    output = "linear_attn.out_proj" if hasattr(module, "linear_attn") else output
    return module.get_submodule(output), module.get_submodule(down)


def inputs_of_unit(units: PruningUnits, group: Group, unit: int) -> list[int]:
    """The inputs of the output or down projection that a head, value or channel unit masks."""
    shape = units.shapes[group.layer]
    size, queries = shape.head_dim, shape.query_heads_per_group
    if group.kind == "values":
        head, dimension = divmod(unit, size)
        return [(head * queries + query) * size + dimension for query in range(queries)]
    width = {"heads": queries * size, "channels": units.channel_block}[group.kind]
    return list(range(unit * width, (unit + 1) * width))


def zeroed(model: PreTrainedModel, units: PruningUnits, mask: torch.Tensor) -> PreTrainedModel:
    """A plain copy of the model in which the weights of pruned units are zero."""
    return zero(copy.deepcopy(model), units, mask)


def zero(model: PreTrainedModel, units: PruningUnits, mask: torch.Tensor) -> PreTrainedModel:
    """Sets the weights of pruned units to zero, in the model itself; returns it."""
    for group in units.groups:
        output, down = projections_of(model, group.layer)
        blocks = {"attention": [output], "mlp": [down], "layer": [output, down]}
        for j, keep in enumerate(mask[group.start : group.stop]):
            if keep:
                continue
            with torch.no_grad():
                if group.kind not in blocks:
                    projection = down if group.kind == "channels" else output
                    projection.weight[:, inputs_of_unit(units, group, j)] = 0
                for projection in blocks.get(group.kind, []):
                    for parameter in projection.parameters():
                        parameter.zero_()
    return model


def masked_lm(
    model: PreTrainedModel, granularity: str = "heads+channels", channel_block: int = 1, **options
) -> MaskedLM:
    """The model with masks over its units of a granularity; the options are those of MaskedLM."""
    return MaskedLM(model, PruningUnits.of(model, granularity, channel_block), **options)


def toy_units(
    layers: int = 3, kv_heads: int = 2, channels: int = 6, granularity: str = "heads+channels"
) -> PruningUnits:
    """Units without a model: a kv group costs 7, a channel 3."""
    shape = LayerShape(
        kv_heads=kv_heads,
        query_heads_per_group=2,
        head_dim=4,
        channels=channels,
        kv_group_cost=7,
        value_cost=1,
        channel_cost=3,
        attention_cost=7 * kv_heads + 1,
        mlp_cost=3 * channels + 1,
    )
    return PruningUnits([shape] * layers, granularity)


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@torch.no_grad()
def text_of(model: PreTrainedModel, windows: int = 240, length: int = 16) -> str:
    """Windows of letters that a model of 26 tokens draws: what comes nearer to it has less loss."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(26, (windows, 1), generator=generator)
    for _ in range(length - 1):
        likely = model(ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(likely, 1, generator=generator)], dim=1)
    return "".join(chr(ord("a") + i) for i in ids.flatten().tolist())


def tiny_arguments(directory: Path, family: str = "llama", likely: bool = False) -> dict[str, Any]:
    """Writes a random model of 3 layers (2 kv groups and 6 channels each) and a text to read.

    The text is random letters, on which a repair does harm, or else likely for the model.
    """
    small = {"intermediate_size": 6, "max_position_embeddings": 24}  # a sample of text is short
    model = tiny_model(family, **small, **({"vocab_size": 26} if likely else {}))
    model.save_pretrained(directory / "model")
    letters_tokenizer().save_pretrained(directory / "model")
    letters = np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), (40, 100))
    random_text = "\n".join("".join(line) for line in letters)
    (directory / "text.txt").write_text(text_of(model) if likely else random_text)
    return {
        "model": str(directory / "model"),
        "calibration": str(directory / "text.txt"),
        "evaluation": str(directory / "text.txt"),
        "batch_size": 2,
        "sequence_length": 16,
        "dtype": "float64",
        "prune_rate": 0.5,
    }


@dataclass
class AdditiveLM:
    """Stands in for a MaskedLM: the loss is the worth of what is pruned, and some noise.

    The noise belongs to the batch, so that masks of one step share it, as on real text.
    """

    units: PruningUnits
    worth: torch.Tensor  # (n,)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    calls: int = 0

    def losses(
        self, masks: torch.Tensor, input_ids: torch.Tensor, fill: None = None
    ) -> torch.Tensor:
        self.calls += 1
        pruned = (1 - masks.to(self.worth)) @ self.worth  # (K,)
        return pruned[:, None] + input_ids.double().mean(dim=1) / 26  # (K, B)


def toy_problem(lm: AdditiveLM, prune_rate: float = 0.5, batch: int = 2) -> Problem:
    """A problem whose model is a formula and whose text is letters."""
    documents = ["thequickbrownfox" * (1 + i % 3) + "jumps" for i in range(40)]
    tokenizer = letters_tokenizer()
    stream = CalibrationStream(TextWindows(documents, tokenizer, 8), batch)
    return Problem(
        lm, lm.units, Budget(lm.units, prune_rate), stream, stream.head(4), tokenizer, DataConfig()
    )
