"""What a refit changes of the parameters of a layer."""

from torch import Tensor

Change = tuple[Tensor | None, Tensor | None]
"""New weight and bias of a projection, None where it stays; (outputs, inputs) and (outputs,)."""

Solution = dict[str, Change]
"""Changes by kind: ``heads``, ``channels`` or ``up``, the up projection of a gated MLP; of a
mixture ``experts``, the down projections of all its experts as they are stored."""
