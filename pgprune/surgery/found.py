"""Compares a pruned model of a family that was found with the masked one, before it is used."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.inspection.probe import probe_ids
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.pruned import pruned_logits
from pgprune.masking.units import PruningUnits
from pgprune.models.proof import same


@torch.no_grad()
def check_pruned(
    dense: PreTrainedModel, units: PruningUnits, mask: Tensor, smaller: PreTrainedModel
) -> None:
    """Checks that a pruned model computes what the dense one does under its mask.

    Args:
        dense: of a family that was found.
        units: its units.
        mask: (n,).
        smaller: what surgery made of it, without a repair.

    Raises:
        PruningError: it computes something else.
    """
    lm, ids = MaskedLM(dense, units), probe_ids(dense, 2)
    expected = pruned_logits(lm, mask, ids)
    change = expected - pruned_logits(lm, units.ones(), ids)
    if not bool(mask.all()) and not same(smaller(input_ids=ids).logits, expected, change):
        raise PruningError(
            f"the smaller model of the family {dense.config.model_type!r} does not compute what "
            "the masked one does; use --format masked"
        )
