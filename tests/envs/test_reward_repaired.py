"""Rewards after a bias repair: pruned inputs are at their means."""

import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from helpers.command import assert_same_run, results, train
from helpers.inputs import inputs_of
from helpers.masks import all_patterns
from helpers.tiny import masked_lm, projections_of, tiny_model, tokens, zeroed
from pgprune import PruningError
from pgprune.agents.training.settings import Settings
from pgprune.envs import LLMPruningEnv, LLMPruningVectorEnv
from pgprune.envs.reward import mean_fill
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.run import Run
from pgprune.utils.files import read_checkpoint, write_checkpoint

WINDOWS = tokens(batch=4, length=12, seed=1)
IDS = tokens(batch=2)
GRANULARITIES = [
    ("heads+channels", 1),
    ("heads+channels", 4),
    ("heads", 1),
    ("channels", 1),
    ("blocks", 1),
]
BLOCKS = {"heads": "attention", "channels": "mlp"}


def means_of(model) -> dict[tuple[int, str], torch.Tensor]:
    """Mean inputs of the projections in a plain forward pass."""
    return {key: x.flatten(0, -2).mean(0) for key, x in inputs_of(model, WINDOWS).items()}


def pruned_share(units: PruningUnits, mask, layer: int, kind: str, inputs: int) -> torch.Tensor:
    """Which inputs of a projection a mask prunes, (inputs,): some units', or all of a block."""
    for group in units.groups:
        if group.layer == layer and group.kind in (kind, BLOCKS[kind]):
            part = mask[group.start : group.stop].bool()
            return ~part.repeat_interleave(inputs // len(part))
    return torch.zeros(inputs, dtype=torch.bool)


@torch.no_grad()
def repaired_by_hand(model, units: PruningUnits, mask, means) -> nn.Module:
    """A plain copy of the model without what is pruned, with b + W_P mu_P as biases."""
    repaired = zeroed(model, units, mask)
    for (layer, kind), mean in means.items():
        index = list(BLOCKS).index(kind)
        dense, pruned = projections_of(model, layer)[index], projections_of(repaired, layer)[index]
        share = pruned_share(units, mask, layer, kind, dense.in_features)
        pruned.bias = nn.Parameter(nn.functional.linear(mean * share, dense.weight, dense.bias))
    return repaired


@torch.no_grad()
def plain_losses(model, ids) -> torch.Tensor:
    logits = model(ids).logits[:, :-1].log_softmax(-1)
    return -logits.gather(-1, ids[:, 1:, None]).mean(dim=(1, 2))  # (B,)


@pytest.mark.parametrize(("granularity", "channel_block"), GRANULARITIES)
def test_losses_equal_those_of_a_model_repaired_by_hand(model, granularity, channel_block):
    units = PruningUnits.of(model, granularity, channel_block)
    masks, means = all_patterns(units), means_of(model)
    expected = torch.stack(
        [plain_losses(repaired_by_hand(model, units, mask, means), IDS) for mask in masks]
    )
    for executor in EXECUTORS:
        lm = MaskedLM(model, units, executor)
        losses = lm.losses(masks, IDS, mean_fill(lm, WINDOWS))
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)
        assert not torch.allclose(losses, lm.losses(masks, IDS), rtol=0, atol=1e-3)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_losses_equal_those_under_the_mask_with_a_bias_repair(family, executor):
    lm = masked_lm(tiny_model(family), executor=executor)
    fill = mean_fill(lm, WINDOWS)
    for mask in all_patterns(lm.units):
        biases = {}
        for (layer, kind), mean in fill.items():
            linear = lm.linear(layer, kind)
            share = pruned_share(lm.units, mask, layer, kind, linear.in_features)
            biases[layer, kind] = nn.functional.linear(mean * share, linear.weight, linear.bias)
        with repaired(lm, Repair(biases=biases)):
            expected = lm.losses(mask[None], IDS)
        losses = lm.losses(mask[None], IDS, fill)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_both_executors_agree_in_every_number_format(model, dtype, tolerance):
    units, found = PruningUnits.of(model), []
    for executor in EXECUTORS:
        lm = MaskedLM(model.to(dtype), units, executor)
        found.append(lm.losses(all_patterns(units), IDS, mean_fill(lm, WINDOWS)))
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=0)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_not_pruned_stays_as_it_is(model, executor):
    lm = masked_lm(model, executor=executor)
    dense = lm.units.ones()[None]
    assert torch.equal(lm.losses(dense, IDS, mean_fill(lm, WINDOWS)), lm.losses(dense, IDS))


def test_the_means_cost_one_pass_that_is_counted():
    lm = masked_lm(tiny_model("llama"))
    mean_fill(lm, WINDOWS)
    assert lm.meter.tokens == 2 * WINDOWS.numel()  # as every look at the projections' inputs


def test_an_overflow_has_no_mean():
    model = tiny_model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = torch.inf
    lm = masked_lm(model)
    with pytest.raises(PruningError, match="the channels of layer 1 overflow"):
        mean_fill(lm, WINDOWS)


@pytest.mark.parametrize("shared_batch", [True, False])
def test_rewards_are_of_repaired_masks_and_perplexities_of_plain_ones(problem, shared_batch):
    envs = LLMPruningVectorEnv(2, problem=problem, reward="repaired", shared_batch=shared_batch)
    envs.reset(seed=4)
    masks = all_patterns(problem.units)[[2, 3]]
    _, rewards, *_ = envs.step(masks.numpy())
    fill = mean_fill(problem.lm, problem.stream.head(128))
    batches = [problem.stream.fork(seed).next() for seed in (4, 4 if shared_batch else 5)]
    for mask, batch, reward in zip(masks, batches, rewards, strict=True):
        assert reward == pytest.approx(-float(problem.lm.losses(mask[None], batch, fill).mean()))
        assert reward != pytest.approx(-float(problem.lm.losses(mask[None], batch).mean()))
        plain = LLMPruningEnv(problem=problem).perplexity(mask.numpy())
        assert envs.perplexity(mask) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"reward": "best"}, "'best'.*plain, repaired"),
        ({"reward": "repaired", "granularity": "layers"}, "repaired.*layer"),
    ],
)
def test_rewards_that_there_are_not_are_refused_at_once(argument, message):
    with pytest.raises(PruningError, match=message):
        LLMPruningVectorEnv(**argument)


def test_a_run_learns_repaired_and_reports_plain(options, tmp_path, problem):
    run, other, options = tmp_path / "run", tmp_path / "plain", [*options, "--repair=bias"]
    assert train(*options, f"--output={run}", "--reward=repaired") == 0
    assert train(*options, f"--output={other}") == 0
    found, plain = results(run), results(other)
    assert (found["reward"], plain["reward"]) == ("repaired", "plain")
    for row in ("dense", "initial"):
        assert found["perplexity"][row] == plain["perplexity"][row]
    cost, plain_cost = (each["method_cost"]["tokens"] for each in (found, plain))
    assert cost == plain_cost + 2 * 128 * 16  # the means, once

    settings = Settings.from_run(Run.open(run))
    assert settings.agent.reward == "repaired"
    lm = problem.lm
    mask = load_file(run / "mask.safetensors")["mask"]
    fill = mean_fill(lm, problem.stream.fork(0).head(128))
    last = lm.losses(mask[None], problem.validation, fill).double().mean()
    assert found["validation_loss"]["last"] == pytest.approx(float(last))


def test_a_run_of_before_there_was_the_option_goes_on(undisturbed, tmp_path):
    run = tmp_path / "old"
    shutil.copytree(undisturbed, run)
    (run / "results.json").unlink()
    config = run / "config.yaml"
    config.write_text(re.sub(" *reward(_refit|_precision)?: .*\n", "", config.read_text()))
    assert "reward" not in config.read_text()
    checkpoint = run / "checkpoint" / "checkpoint.safetensors"
    tensors, record = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, tensors, record | {"fingerprint": Run.open(run)._fingerprint()})
    assert train(f"--resume={run}") == 0
    assert_same_run(undisturbed, run)


def test_layers_are_refused_before_a_run_exists(options, tmp_path):
    with pytest.raises(PruningError, match="reward plain.*granularity"):
        train(
            *options,
            f"--output={tmp_path / 'run'}",
            *("--reward=repaired", "--repair=bias", "--granularity=layers"),
        )
    assert not (tmp_path / "run").exists()
