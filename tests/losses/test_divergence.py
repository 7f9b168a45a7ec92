"""KL divergence from kept predictions: against all of the vocabulary, or with the rest as one."""

import pytest
import torch
from torch import nn

from pgprune import PruningError
from pgprune.losses.divergence import Predictions, divergences, predictions
from pgprune.losses.tokens import LogitsMemory

VOCABULARY = 200


class Headed(nn.Module):
    """A model that is only a head."""

    def __init__(self, dtype=torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(24, VOCABULARY, bias=True, dtype=dtype)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


def states(seed: int, dtype=torch.float64, count: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, 24, generator=generator).to(dtype)


def plain(
    model: Headed, dense: torch.Tensor, other: torch.Tensor, kept: Predictions
) -> torch.Tensor:
    """KL of the kept tokens and of the others as one, from all probabilities in float64, (N,)."""

    def told_apart(hidden: torch.Tensor) -> torch.Tensor:
        p = model.head(hidden).double().softmax(1)
        others = p.scatter(1, kept.tokens, 0).sum(1, keepdim=True)
        return torch.cat([p.gather(1, kept.tokens), others], 1)

    p, q = told_apart(dense), told_apart(other)
    return torch.xlogy(p, p / q).nan_to_num(0).sum(1)  # 0/0 where there are no others


@torch.no_grad()
@pytest.mark.parametrize("top", [1, 16, VOCABULARY - 1, VOCABULARY, 10 * VOCABULARY])
def test_equals_a_plain_computation(top):
    model, dense, other = Headed(), states(1), states(2)
    kept = predictions(model, dense, top)
    found = divergences(model, other, kept)
    torch.testing.assert_close(found, plain(model, dense, other, kept), rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_the_most_likely_tokens_are_kept():
    model, dense = Headed(), states(1)
    kept = predictions(model, dense, 16)
    p = model.head(dense).softmax(1)
    torch.testing.assert_close(kept.log_probabilities[:, :-1].exp(), p.topk(16).values)
    total = kept.log_probabilities.exp().sum(1)
    torch.testing.assert_close(total, torch.ones_like(total))


@torch.no_grad()
def test_the_whole_vocabulary_gives_the_divergence_itself():
    model, dense, other = Headed(), states(1), states(2)
    p, q = (model.head(each).log_softmax(1) for each in (dense, other))
    expected = (p.exp() * (p - q)).sum(1)
    found = divergences(model, other, predictions(model, dense, VOCABULARY))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_telling_fewer_tokens_apart_never_raises_it():
    model, dense, other = Headed(), states(1), states(2)
    tops = (1, 8, 64, VOCABULARY)
    found = [divergences(model, other, predictions(model, dense, top)) for top in tops]
    for fewer, more in zip(found, found[1:], strict=False):
        assert (fewer <= more).all()
    assert (found[0] > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top", [16, VOCABULARY])
def test_a_model_does_not_diverge_from_itself(dtype, top):
    model, dense = Headed(dtype), states(1, dtype)
    assert (divergences(model, dense, predictions(model, dense, top)) == 0).all()


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "wide"), [(torch.float32,) * 2, (torch.bfloat16, torch.float32)])
def test_other_number_formats_come_near(dtype, wide):
    model, dense, other = Headed(dtype), states(1, dtype), states(2, dtype)
    kept = predictions(model, dense, 16)
    found = divergences(model, other, kept)
    assert found.dtype == wide
    expected = plain(model, dense, other, kept)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_others_that_have_almost_no_probability_keep_it():
    model, dense = Headed(torch.float32), states(1, torch.float32)
    model.head.bias[0] = 40.0  # of the others, some e^-40 is left: far below the rounding of 1
    kept = predictions(model, dense, 1)
    sharp, other = (each.double() for each in (dense, states(2)))
    expected = plain(model.double(), sharp, other, kept)
    found = divergences(model.float(), other.float(), kept)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-12)


@torch.no_grad()
def test_probabilities_of_zero_leave_it_finite():
    model, dense = Headed(torch.float32), states(1, torch.float32)
    kept = predictions(model, dense, 4)
    model.head.bias[kept.tokens.unique()] += 500.0  # the others underflow
    assert divergences(model, dense, kept).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_make_no_difference_and_share_their_memory(dtype):
    class Recorded(LogitsMemory):
        def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
            logits = super().take(rows, columns, dtype)
            taken.append((rows, logits.data_ptr()))
            return logits

    taken, memory = [], Recorded()
    model, dense, other = Headed(dtype), states(1, dtype), states(2, dtype)
    whole = divergences(model, other, predictions(model, dense, 16))
    kept = predictions(model, dense, 16, chunk=8, memory=memory)
    torch.testing.assert_close(divergences(model, other, kept, chunk=8, memory=memory), whole)
    if dtype == torch.float32:  # others are not worked on in place
        assert [rows for rows, _ in taken] == 2 * [16, 16, 16, 2]
        assert len({place for _, place in taken}) == 1


@torch.no_grad()
def test_what_does_not_fit_together_is_refused():
    model = Headed()
    with pytest.raises(PruningError, match="top 0 keeps no token.*choose 1 or more"):
        predictions(model, states(1), 0)
    kept = predictions(model, states(1), 4)
    with pytest.raises(PruningError, match="of 50 tokens do not compare with states of 49"):
        divergences(model, states(1, count=49), kept)
