"""Losses of tokens: logits worked on in place give what fresh ones give."""

import pytest
import torch
from torch import nn

from pgprune.models import losses as scoring
from pgprune.models.losses import release_logits, token_losses


class Headed(nn.Module):
    """What has a head, and states and targets for it."""

    def __init__(self, vocabulary: int, bias: bool, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(vocabulary)
        self.head = nn.Linear(24, vocabulary, bias, dtype=dtype)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def losses(self, count: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(count)
        hidden = torch.randn(count, 24, generator=generator, dtype=self.head.weight.dtype)
        targets = torch.randint(self.head.out_features, (count,), generator=generator)
        return token_losses(self, hidden, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_in_place_give_the_same_losses(bias, dtype, monkeypatch):
    monkeypatch.setattr(scoring, "LOGITS_BYTES", 4 * 70 * 500)  # chunks of 140 tokens, or of 70
    models = [Headed(vocabulary, bias, dtype) for vocabulary in (500, 90, 333)]
    counts = (300, 71, 7)
    fresh = [model.losses(count).detach() for model in models for count in counts]  # with gradients
    with torch.no_grad():
        first = [model.losses(count) for model in models for count in counts]
        again = [model.losses(count) for model in models for count in counts]
    for expected, found, repeated in zip(fresh, first, again, strict=True):
        torch.testing.assert_close(found, expected)
        assert torch.equal(found, repeated)


@torch.no_grad()
def test_memory_is_kept_until_it_is_released():
    model = Headed(500, False, torch.float32)
    model.losses(10)
    kept = scoring._kept.memory.data_ptr()
    model.losses(7)
    assert scoring._kept.memory.data_ptr() == kept
    release_logits()
    assert not vars(scoring._kept)
    assert model.losses(7).isfinite().all()
