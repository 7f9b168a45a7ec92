"""Token losses: chunks of logits, worked on in place, give the losses of all logits at once."""

import pytest
import torch
from torch import nn

from pgprune.losses.tokens import LogitsMemory, token_losses


class Headed(nn.Module):
    """A model that is only a head, with states and targets for it."""

    def __init__(self, vocabulary: int, bias: bool = False, dtype=torch.float32) -> None:
        super().__init__()
        torch.manual_seed(vocabulary)
        self.head = nn.Linear(24, vocabulary, bias, dtype=dtype)

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def losses(self, count: int, **options) -> torch.Tensor:
        generator = torch.Generator().manual_seed(count)
        hidden = torch.randn(count, 24, generator=generator, dtype=self.head.weight.dtype)
        targets = torch.randint(self.head.out_features, (count,), generator=generator)
        return token_losses(self, hidden, targets, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_logits_in_place_give_the_same_losses(bias, dtype):
    models = [Headed(vocabulary, bias, dtype) for vocabulary in (500, 90, 333)]
    counts, memory = (300, 71, 7), LogitsMemory()
    fresh = [model.losses(count).detach() for model in models for count in counts]  # with gradients
    with torch.no_grad():
        first, again = (
            [model.losses(n, chunk=70, memory=memory) for model in models for n in counts]
            for _ in range(2)
        )
    for expected, found, repeated in zip(fresh, first, again, strict=True):
        torch.testing.assert_close(found, expected)
        assert torch.equal(found, repeated)


@torch.no_grad()
def test_no_more_logits_than_a_chunk_are_in_memory_and_each_chunk_reuses_it():
    class Recorded(LogitsMemory):
        def take(self, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
            logits = super().take(rows, columns, dtype)
            taken.append((rows, columns, logits.data_ptr()))
            return logits

    taken, memory = [], Recorded()
    for count in (174, 100):
        Headed(500).losses(count, chunk=64, memory=memory)
    place = taken[0][2]
    assert taken == [(128, 500, place), (46, 500, place), (100, 500, place)]
