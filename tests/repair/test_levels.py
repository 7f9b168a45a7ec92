"""Levels: each is the best of what it keeps, and any mixture is an ordinary forward pass."""

from pathlib import Path

import pytest
import torch

from helpers.far_device import FarDevice, take
from helpers.inputs import inputs_of
from helpers.masks import TRITON
from helpers.tiny import masked_lm, projections_of, tiny_model, tokens
from pgprune.errors import PruningError
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.masked_lm import MaskedLM
from pgprune.repair.fit_levels import fit_levels
from pgprune.repair.levels import Levels, path_of
from pgprune.repair.repair import repaired

IDS = tokens(5, 16)
WAYS = [("masked", "plain"), ("sliced", "plain"), pytest.param("sliced", "triton", marks=TRITON)]


def kept_of(lm: MaskedLM) -> list[torch.Tensor]:
    """All of a group, about two thirds and one third of it, and nothing."""
    sizes = lm.units.sizes.long().tolist()
    return [torch.tensor(sorted({n, n * 2 // 3, n // 3, 0}, reverse=True)) for n in sizes]


def levels_of(lm: MaskedLM, folder: Path, damping: float = 1e-2) -> Levels:
    return fit_levels(lm, IDS, kept_of(lm), folder, damping)


def some_choices(levels: Levels) -> torch.Tensor:
    """The first and last levels, and mixtures, (K, groups)."""
    most = torch.tensor([len(group.kept) - 1 for group in levels.groups])
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.rand(6, len(most), generator=generator) * (most + 1)).long()
    return torch.cat([torch.zeros_like(most)[None], most[None], drawn])


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels"])
@pytest.mark.parametrize(("executor", "kernels"), WAYS)
def test_a_mixture_is_a_pass_of_its_repair(model, executor, kernels, granularity, tmp_path):
    lm = masked_lm(model, granularity, executor=executor, kernels=kernels)
    levels = levels_of(lm, tmp_path)
    choices = some_choices(levels)
    masks = levels.masks(choices)
    with lm.refitted(levels.weight):
        losses = lm.losses(masks, IDS)  # (K, B)
    for choice, mask, loss in zip(choices, masks, losses, strict=True):
        with repaired(lm, levels.repair(choice)):
            torch.testing.assert_close(lm.losses(mask[None], IDS)[0], loss, atol=1e-10, rtol=0)


def test_the_first_levels_are_the_dense_model(model, tmp_path):
    lm = masked_lm(model)
    levels = levels_of(lm, tmp_path)
    nothing = torch.zeros(1, len(levels.groups), dtype=torch.int64)
    assert levels.masks(nothing).all()
    assert not levels.repair(nothing[0]).weights
    dense = lm.losses(lm.units.ones()[None], IDS)
    with lm.refitted(levels.weight):
        torch.testing.assert_close(lm.losses(levels.masks(nothing), IDS), dense)


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels"])
def test_weights_are_the_best_for_what_is_kept(granularity, tmp_path):
    model = tiny_model("llama")
    lm = masked_lm(model, granularity)
    levels = levels_of(lm, tmp_path, damping=0)
    inputs = inputs_of(model, IDS)
    states = [torch.cat(chunks).flatten(0, -2) for chunks in lm.blocks(IDS)]  # (tokens, D) each
    for i, group in enumerate(lm.units.groups):
        x = inputs[group.layer, group.projection].flatten(0, -2)  # (tokens, inputs)
        linear = projections_of(model, group.layer)[lm.units.kinds.index(group.kind)]
        scale = states[i].square().mean(1, keepdim=True).rsqrt()  # of states after the block
        wanted = linear(x)
        choice = torch.zeros(len(levels.groups), dtype=torch.int64)
        choice[i] = 1
        (mask,) = levels.masks(choice[None])
        part = LayerMask(mask[None], lm.units, group.layer, lm.family)
        channels = group.kind == "channels"
        columns = part.by_kind["channels"] if channels else part.output_columns()
        kept = columns[0].bool()  # (inputs,)
        constant = [] if linear.bias is None else [torch.ones_like(x[:, :1])]
        inputs_and_one = torch.cat([x[:, kept], *constant], dim=1)
        best = torch.linalg.lstsq(inputs_and_one * scale, wanted * scale).solution.T
        weight = levels.repair(choice).weights[group.layer, group.projection]
        torch.testing.assert_close(weight[:, kept], best[:, : int(kept.sum())])
        assert not weight[:, ~kept].any()
        error = ((inputs_and_one @ best.T - wanted) * scale).square().mean()
        torch.testing.assert_close(levels.groups[i].errors[1], error)


def test_a_level_keeps_a_part_of_the_one_before(tmp_path):
    levels = levels_of(masked_lm(tiny_model("llama")), tmp_path)
    groups = len(levels.groups)
    masks = levels.masks(torch.arange(3)[:, None].expand(3, groups))
    assert (masks[1:] <= masks[:-1]).all()
    for group in levels.groups:
        assert (group.errors.diff() >= 0).all()


def test_below_finds_the_levels_of_masks(tmp_path):
    levels = levels_of(masked_lm(tiny_model("llama")), tmp_path)
    choices = some_choices(levels)
    masks = levels.masks(choices)
    assert torch.equal(levels.below(masks), choices)
    more = masks.clone()
    group, first = levels.units.groups[1], levels.groups[1]
    more[:, group.start + first.order[first.kept[1]]] = 1  # one unit more than level 1
    assert torch.equal(levels.below(more)[choices[:, 1] == 1], choices[choices[:, 1] == 1])


def test_they_are_read_again_as_they_were_written(tmp_path):
    lm = masked_lm(tiny_model("llama"))
    levels = levels_of(lm, tmp_path)
    again = Levels.load(lm.units, tmp_path)
    assert again is not None
    choices = some_choices(levels)
    assert torch.equal(again.masks(choices), levels.masks(choices))
    for choice in choices:
        old, new = levels.repair(choice), again.repair(choice)
        assert old.weights.keys() == new.weights.keys()
        assert all(torch.equal(old.weights[key], new.weights[key]) for key in old.weights)


def test_an_interrupted_fit_is_no_levels(tmp_path):
    lm = masked_lm(tiny_model("llama"))
    levels_of(lm, tmp_path)
    for last in ("manifest.json", "groups.safetensors"):
        (tmp_path / last).unlink()
    assert Levels.load(lm.units, tmp_path) is None


def test_damaged_levels_are_refused(tmp_path):
    lm = masked_lm(tiny_model("llama"))
    levels = levels_of(lm, tmp_path)
    path_of(tmp_path, 1).write_bytes(b"not weights")
    with pytest.raises(PruningError, match="missing or damaged"):
        levels.repair(torch.ones(len(levels.groups), dtype=torch.int64))
    (tmp_path / "groups.safetensors").write_bytes(b"nothing")
    with pytest.raises(PruningError, match="damaged"):
        Levels.load(lm.units, tmp_path)


@pytest.mark.parametrize("granularity", ["heads+channels", "values+channels"])
def test_on_a_gpu_they_are_what_they_are_on_the_host(granularity, tmp_path):
    def losses(far: bool) -> torch.Tensor:
        model = tiny_model("llama", torch.float32)
        lm = masked_lm(model, granularity, executor="sliced")
        if far:
            take(lm.model)
        levels = levels_of(lm, tmp_path / str(far))
        with lm.refitted(levels.weight):
            return lm.losses(levels.masks(some_choices(levels)), IDS).cpu()

    near = losses(far=False)
    with FarDevice():
        torch.testing.assert_close(losses(far=True), near)
