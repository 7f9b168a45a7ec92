"""Rewards by the KL divergence from the dense model: masks are judged by what it predicts."""

import pytest
import torch
from safetensors.torch import load_file

from helpers.command import results, train
from helpers.masks import all_patterns
from helpers.tiny import VOCABULARY, masked_lm, tiny_model, tokens, zeroed
from pgprune import PruningError
from pgprune.agents.training.final_mask import final_mask
from pgprune.agents.training.settings import Settings
from pgprune.envs import LLMPruningEnv, LLMPruningVectorEnv
from pgprune.envs.judge import Judge
from pgprune.envs.nearby_repair import NearbyRepair
from pgprune.envs.reward import TOP, mean_fill
from pgprune.masking.executors import EXECUTORS
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.repair.config import RepairConfig
from pgprune.repair.fit_levels import fit_levels
from pgprune.repair.repair import Repair, repaired
from pgprune.runs.run import Run

IDS = tokens(batch=2)


@torch.no_grad()
def log_probabilities(model) -> torch.Tensor:
    return model(IDS).logits[:, :-1].log_softmax(-1)  # (B, T-1, vocabulary)


def told_apart(log_p: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Probabilities of some tokens, and of all others together."""
    p = log_p.exp()
    others = p.scatter(-1, kept, 0).sum(-1, keepdim=True)
    return torch.cat([p.gather(-1, kept), others], -1)


def plain_divergences(model, units: PruningUnits, masks, top: int) -> torch.Tensor:
    """Mean KL of Hugging Face's own model with zero weights from the dense one, (K, B)."""
    dense = log_probabilities(model)
    kept = dense.topk(top, dim=-1).indices
    p = told_apart(dense, kept)
    found = []
    for mask in masks:
        q = told_apart(log_probabilities(zeroed(model, units, mask)), kept)
        found.append((p * (p / q).log()).nan_to_num(0).sum(-1).mean(1))
    return torch.stack(found)


@pytest.mark.parametrize("granularity", ["heads+channels", "blocks"])
@pytest.mark.parametrize("top", [5, VOCABULARY])
def test_divergences_equal_a_plain_computation(model, granularity, top):
    units = PruningUnits.of(model, granularity)
    masks = all_patterns(units)
    expected = plain_divergences(model, units, masks, top)
    for executor in EXECUTORS:
        lm = MaskedLM(model, units, executor)
        found = lm.divergences(masks, IDS, lm.dense_predictions(IDS, top))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_dense_mask_has_no_divergence(model, executor):
    judge = Judge(masked_lm(model.float(), executor=executor), top=5)
    ones = judge.lm.units.ones()[None]
    assert (judge(ones, IDS) == 0).all()
    assert (judge(1 - ones, IDS) > 0.01).all()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_the_same_is_found_again_bit_for_bit(model, executor):
    judge = Judge(masked_lm(model.float(), executor=executor), top=5)
    masks = all_patterns(judge.lm.units)
    first = judge(masks, IDS)
    assert torch.equal(judge(masks, IDS), first)
    judge.remember([IDS])
    assert torch.equal(judge(masks, IDS), first)


def test_one_dense_pass_a_batch_is_counted_and_none_of_what_is_remembered(problem):
    judge = Judge(problem.lm, top=5)
    masks, meter = all_patterns(problem.units)[:4], problem.lm.meter

    def cost(work) -> int:
        before = meter.tokens
        work()
        return (meter.tokens - before) // IDS.numel()

    ids = IDS % 26
    assert cost(lambda: judge(masks, ids)) == 5
    assert cost(lambda: judge.remember([ids])) == 1
    assert cost(lambda: judge(masks, ids)) == 4
    assert cost(lambda: judge(masks, ids.view(-1, 3))) == 5, "another batch of the same tokens"
    assert cost(lambda: Judge(problem.lm)(masks, ids)) == 4, "cross-entropy needs none"


class Halves:
    """Replicas that are not there: this process evaluates both halves of the masks."""

    size = 2

    def ready(self, model: str) -> None:
        """Nothing is to be loaded."""

    def losses(self, masks, input_ids, local) -> torch.Tensor:
        return torch.cat([local(part, input_ids) for part in masks.tensor_split(2)])


def test_replicas_find_the_same_for_the_same_count(model):
    alone, shared = (Judge(masked_lm(model, executor="sliced"), top=5) for _ in range(2))
    shared.share(Halves())
    masks = all_patterns(alone.lm.units)
    for rows in (masks, masks[[0, 1, 0]], masks[:1]):
        assert torch.equal(shared(rows, IDS), alone(rows, IDS))
        assert shared.lm.meter.tokens == alone.lm.meter.tokens
    for judge in (alone, shared):
        judge.remember([IDS])
        judge(masks, IDS)
    assert shared.lm.meter.tokens == alone.lm.meter.tokens


def test_repaired_masks_are_compared_with_the_dense_model_as_it_is(problem):
    lm = problem.lm
    windows, ids = problem.stream.head(8), problem.stream.fork(4).next()
    mask = problem.budget.round(torch.linspace(0, 1, problem.units.n).sin())
    dense = lm.dense_predictions(ids, TOP)

    fill = mean_fill(lm, windows)
    expected = lm.divergences(mask[None], ids, dense, fill)
    assert torch.equal(Judge(lm, fill, TOP)(mask[None], ids), expected)

    judge, repair = Judge(lm, top=TOP), NearbyRepair(lm, windows)
    judge.use(repair)
    judge.follow(mask)
    with repaired(lm, repair(mask)):
        expected = lm.divergences(mask[None], ids, dense)
    assert torch.equal(judge(mask[None], ids), expected)


def test_levels_are_compared_with_the_dense_model_as_it_is(tmp_path):
    lm = masked_lm(tiny_model("llama"))
    kept = [torch.tensor([size, size // 2, 0]) for size in lm.units.sizes.long().tolist()]
    judge = Judge(lm, top=5)
    judge.levels = levels = fit_levels(lm, tokens(5, 16), kept, tmp_path)
    masks = levels.masks(torch.stack([torch.arange(len(kept)) % 3, torch.zeros(len(kept)).long()]))
    found, dense = judge(masks, IDS), lm.dense_predictions(IDS, 5)
    with lm.refitted(levels.weight):
        torch.testing.assert_close(found, lm.divergences(masks, IDS, dense), rtol=0, atol=1e-12)
    assert found[0].min() > 0.01
    assert found[1].abs().max() < 1e-12


@pytest.mark.parametrize("shared_batch", [True, False])
def test_environments_reward_by_it_and_report_perplexities_of_the_text(problem, shared_batch):
    envs = LLMPruningVectorEnv(2, problem=problem, loss="kl", shared_batch=shared_batch)
    envs.reset(seed=4)
    masks = all_patterns(problem.units)[[2, 3]]
    _, rewards, _, _, info = envs.step(masks.numpy())
    for row, mask in enumerate(masks):
        env = LLMPruningEnv(problem=problem, loss="kl")
        env.reset(seed=4 if shared_batch else 4 + row)
        _, reward, _, _, single = env.step(mask.numpy())
        assert (reward, single["loss"]) == pytest.approx((rewards[row], info["loss"][row]))
        batch = problem.stream.fork(4 if shared_batch else 4 + row).next()
        dense = problem.lm.dense_predictions(batch, TOP)
        expected = problem.lm.divergences(mask[None], batch, dense).mean()
        assert reward == pytest.approx(-float(expected))
        few = {"text": problem.validation[:4]}
        plain = LLMPruningEnv(problem=problem).perplexity(mask.numpy(), few)
        assert env.perplexity(mask.numpy(), few) == plain


def test_a_loss_that_there_is_not_is_refused_at_once():
    with pytest.raises(PruningError, match="'mse'.*cross-entropy, kl"):
        LLMPruningVectorEnv(loss="mse")


def test_a_run_validates_by_it_and_counts_its_passes(options, undisturbed, tmp_path, problem):
    run = tmp_path / "run"
    assert train(*options, f"--output={run}", "--loss=kl") == 0
    found, other = results(run), results(undisturbed)
    assert (found["loss"], other["loss"]) == ("kl", "cross-entropy")
    for row in ("dense", "initial"):
        assert found["perplexity"][row] == other["perplexity"][row]
    steps = found["mask_evaluations"] * 1024 // (2 * 2 * 16)
    passes = steps * 2 * 16 + problem.validation.numel()
    assert found["tokens"] == other["tokens"] + passes

    assert Settings.from_run(Run.open(run)).agent.loss == "kl"
    mask = load_file(run / "mask.safetensors")["mask"]
    judge = Judge(problem.lm, top=TOP)
    last = judge.mean(mask, problem.validation.split(8))
    assert found["validation_loss"]["last"] == pytest.approx(last)
    assert found["learning_curve"][-1]["loss"] == pytest.approx(last)


def test_the_shipped_mask_is_chosen_by_it(problem):
    batches, windows = problem.validation.split(8), problem.stream.head(8)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, problem.units.n, generator=generator)
    masks = [problem.budget.round(row) for row in noise]
    judge = Judge(problem.lm, top=TOP)
    config = RepairConfig(repair="bias")
    mask, _ = final_mask(judge, masks, windows, batches, config)

    alone = [final_mask(judge, [each], windows, batches, config) for each in masks]
    dense = [problem.lm.dense_predictions(batch, TOP) for batch in batches]
    losses = []
    for each, chosen in alone:
        with repaired(problem.lm, chosen.repair or Repair()):
            pairs = zip(batches, dense, strict=True)
            rows = [problem.lm.divergences(each[None], *pair) for pair in pairs]
        losses.append(float(torch.cat(rows, dim=1).mean()))
    assert mask is masks[losses.index(min(losses))]
