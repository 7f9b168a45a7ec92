"""Successive halving: the best of many candidates, for the tokens that were promised."""

import pytest
import torch

from helpers.tiny import AdditiveLM, masked_lm, tiny_model, toy_units
from pgprune import PruningError
from pgprune.budget.budget import Budget
from pgprune.envs.halving import halving, halving_tokens
from pgprune.envs.judge import Judge

LENGTH = 8
ROUNDS = (16, 64, 256)


def windows(count: int = 32) -> torch.Tensor:
    return torch.randint(26, (32, LENGTH), generator=torch.Generator().manual_seed(0))[:count]


def masks_of(units, count: int) -> torch.Tensor:
    noise = torch.rand(count, units.n, generator=torch.Generator().manual_seed(1))
    return torch.stack([Budget(units, 0.5).round(row) for row in noise])


@pytest.mark.parametrize("keep", [1 / 8, 1 / 3, 1])
def test_the_best_mask_wins_where_all_windows_agree(keep):
    units = toy_units()
    lm = AdditiveLM(units, torch.rand(units.n, generator=torch.Generator().manual_seed(2)))
    masks = masks_of(units, 20)
    found = halving(masks, lm.losses, windows(), ROUNDS, keep)
    everything = lm.losses(masks, windows(found.losses.shape[1])).mean(1)
    assert int(found.indices[0]) == int(everything.argmin())
    assert torch.equal(found.candidates, masks[found.indices])
    torch.testing.assert_close(found.losses.mean(1), everything[found.indices].double())
    assert (found.losses.mean(1).diff() >= 0).all()


@pytest.mark.parametrize("keep", [1 / 4, 1 / 3, 1])
def test_windows_are_read_once_by_each_candidate_that_is_left(keep):
    seen: list[tuple[int, int]] = []

    def judge(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        seen.extend((int(row), int(window)) for row in rows[:, 0] for window in ids[:, 0])
        return rows.double() + 0 * ids[:, 0]  # the first candidates are the best

    numbered = torch.arange(32)[:, None].expand(-1, LENGTH)
    candidates = torch.arange(10)[:, None]
    found = halving(candidates, judge, numbered, ROUNDS, keep)
    assert len(set(seen)) == len(seen)
    assert len(seen) * LENGTH == halving_tokens(10, ROUNDS, keep)
    left = len(found.indices)
    assert found.indices.tolist() == list(range(left))
    assert {window for row, window in seen if row < left} == set(range(found.losses.shape[1]))
    assert max(window for row, window in seen if row == 9) == (1 if keep < 1 else 31)


def test_tokens_are_those_that_the_meter_counts():
    lm = masked_lm(tiny_model("llama"), executor="sliced")
    masks, rounds = masks_of(lm.units, 9), (16, 32)
    found = halving(masks, Judge(lm), windows(4), rounds, 1 / 3)
    assert lm.meter.tokens == halving_tokens(9, rounds, 1 / 3) == 9 * 16 + 3 * 16
    dense = lm.losses(masks, windows(4)).double().mean(1)
    torch.testing.assert_close(found.losses.mean(1), dense[found.indices], rtol=0, atol=1e-10)

    before = lm.meter.tokens
    halving(masks, Judge(lm, top=5), windows(4), rounds, 1 / 3)
    assert lm.meter.tokens - before == halving_tokens(9, rounds, 1 / 3) + 32


def test_rounds_end_where_a_single_candidate_is_left():
    assert halving_tokens(512) == 512 * 2048 + 64 * (16384 - 2048) + 8 * (131072 - 16384)
    assert halving_tokens(64) == 64 * 2048 + 8 * (16384 - 2048)
    assert halving_tokens(1) == 2048
    lm = AdditiveLM(toy_units(), torch.ones(toy_units().n))
    found = halving(masks_of(lm.units, 3), lm.losses, windows(), ROUNDS, 1 / 3)
    assert found.losses.shape == (3, ROUNDS[0] // LENGTH)


def test_candidates_whose_losses_are_no_numbers_come_last():
    losses = torch.tensor([[torch.nan], [2.0], [torch.inf], [1.0]]).double()

    def judge(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return losses[rows[:, 0]].expand(-1, len(ids))

    found = halving(torch.arange(4)[:, None], judge, windows(), (16, 32), 1)
    assert found.indices.tolist() == [3, 1, 0, 2]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"candidates": torch.empty(0, 3)}, "no candidates"),
        ({"keep": 0.0}, "keep 0.0 is no share"),
        ({"keep": 1.5}, "keep 1.5 is no share"),
        ({"tokens": ()}, "do not grow"),
        ({"tokens": (64, 16)}, "tokens \\(64, 16\\) do not grow"),
        ({"tokens": (0, 16)}, "do not grow"),
        ({"tokens": (16, 60)}, "multiples of 8"),
        ({"tokens": (16, 512)}, "reads 512 tokens, and the windows have 256"),
    ],
)
def test_rounds_that_cannot_be_are_refused(change, says):
    def judge(rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        pytest.fail("something was evaluated")

    arguments = {"candidates": torch.ones(4, 3), "windows": windows(), "tokens": ROUNDS}
    with pytest.raises(PruningError, match=says):
        halving(judge=judge, **arguments | change)
