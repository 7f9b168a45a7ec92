"""Patterns of masks, and the logits of a model without the pruned weights."""

import copy
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch

from helpers.tiny import tokens, zero
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of

TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
WAYS = [
    pytest.param("masked", "plain", id="masked"),
    pytest.param("sliced", "plain", id="sliced"),
    pytest.param("sliced", "triton", id="kernels", marks=TRITON),
]
"""Executors and their kernels."""


IN_FLOAT32 = {"glm4_moe", "deepseek_v3", "llama4_text"}
"""Families whose routers or attention compute in float32, whatever the model's format."""


def bound(model, cached: bool = False) -> float:
    """How far logits of a float64 model may be apart, which are not larger than about ten."""
    recurrent = family_of(model.config).recurrent is not None  # states in float32
    if cached and recurrent:
        return 1e-4  # a cache takes other steps
    return 1e-5 if recurrent or model.config.model_type in IN_FLOAT32 else 1e-10


def patterns(units: PruningUnits) -> dict[str, torch.Tensor]:
    """Masks that prune some units of each kind, all units of a kind in a layer, whole layers."""
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(units.n, generator=generator) < 0.5
    pruned = {"nothing": units.group < 0, "everything": units.group >= 0, "some": some}
    for k, kind in enumerate(units.kinds):
        of_kind = units.kind == k
        first = torch.tensor([group.start for group in units.groups if group.kind == kind])
        pruned[f"some {kind}"] = some & of_kind
        pruned[f"the first {kind} of each layer"] = torch.isin(torch.arange(units.n), first)
        pruned[f"all {kind} of layer 1"] = of_kind & (units.layer == 1)
    if "values" in units.kinds:  # a kv head goes with its last value dimension
        first = torch.cat([torch.arange(units.shapes[0].head_dim) + g.start for g in units.groups])
        pruned["the first kv head and some"] = some | (
            torch.isin(torch.arange(units.n), first) & (units.kind == units.kinds.index("values"))
        )
    for layer, name in ((0, "layer 0"), (1, "layer 1"), (2, "the last layer")):
        pruned[name] = units.layer == layer
        pruned[f"{name} and some"] = (units.layer == layer) | some
    return {name: (~gone).to(torch.uint8) for name, gone in pruned.items()}


def all_patterns(units: PruningUnits) -> torch.Tensor:
    return torch.stack(list(patterns(units).values()))  # (K, n)


@dataclass
class Case:
    """A model, units and all patterns of masks over them."""

    model: torch.nn.Module
    units: PruningUnits
    ids: torch.Tensor

    def __post_init__(self) -> None:
        self.names = list(patterns(self.units))
        self.masks = all_patterns(self.units)

    def logits(
        self, executor: str, dtype: torch.dtype = torch.float64, kernels: str = "plain"
    ) -> torch.Tensor:
        lm = MaskedLM(copy.deepcopy(self.model).to(dtype), self.units, executor, kernels)
        return lm.logits(self.masks, self.ids).double()

    def reference(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The logits of Hugging Face's model with zeros in place of the pruned weights."""
        model = copy.deepcopy(self.model).to(dtype)
        weights = copy.deepcopy(model.state_dict())
        plain = []
        with torch.no_grad():
            for mask in self.masks:
                plain.append(zero(model, self.units, mask)(self.ids).logits)
                model.load_state_dict(weights)  # quicker than another copy of the model
        return torch.stack(plain).double()

    def worst(self, error: torch.Tensor) -> str:
        """The pattern with the largest error, for the message of a failure."""
        error = error.abs().flatten(1).amax(dim=1)
        return f"{self.names[int(error.argmax())]} pruned: off by {float(error.max()):.3g}"

    def size(self, error: torch.Tensor) -> torch.Tensor:
        """Root mean square of each pattern's error, (K,)."""
        return error.square().mean(dim=(1, 2, 3)).sqrt()


def case_of(model, granularity="heads+channels", channel_block=1, **tokens_options) -> Case:
    units = PruningUnits.of(model, granularity, channel_block)
    return Case(model, units, tokens(**tokens_options))


def with_enough_experts(case: Case) -> Case:
    """Keeps as many experts in a layer as a token uses, and drops masks that leave no model."""
    units = case.units
    masks = dict(zip(case.names, case.masks, strict=True))
    for mask in masks.values():
        for group, least in zip(units.groups, units.least.tolist(), strict=True):
            here = mask[group.start : group.stop]
            missing = least - int(here.sum())
            if missing > 0:
                here[torch.nonzero(here == 0).flatten()[-missing:]] = 1
    whole = {"blocks", "layers"} & {units.granularity}
    left = [n for n, m in masks.items() if (m.any() if whole else units.cost[m.bool()].sum())]
    case.names, case.masks = left, torch.stack([masks[name] for name in left])
    return case
