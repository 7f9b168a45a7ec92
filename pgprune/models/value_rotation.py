"""Rotates value dimensions, so that few of them carry most of what attention adds to the stream.

A kv head has values v = W x + b, attention averages them to a_q for each of its query heads q, and
the output projection adds sum_q O_q a_q to the residual stream. For any invertible R the weights
R^-1 W, R^-1 b and O_q R give the same sum: the model computes the same, and its value dimensions
are coordinates in the basis R.

Which basis loses least? Without some coordinates, Q a_q is left of a_q for a projection Q, and the
error is E |sum_q O_q (I - Q) a_q|^2. With A = mean_q E a_q a_q^T and N = sum_q O_q^T O_q it is

    tr(N (I - Q) A (I - Q)^T) = |M (I - L^-1 Q L)|^2,    A = L L^T,  M = N^(1/2) L,

exactly for one query head; for several, as if their errors were independent and their moments
equal. L^-1 Q L is a projection of the same rank m, so by Eckart and Young the error is at least the
sum of all but the m largest s_j^2, for the singular values s_j of M = U S V^T, and V_m V_m^T
reaches it. So R = L V S^(-1/2): its coordinates are uncorrelated over tokens, their columns of O
are orthogonal, and to prune coordinate j costs s_j^2, whatever else is pruned. The split of S gives
a row of W and its columns of O the same size s_j^(1/2).

MoDeGPT (arXiv 2408.09632, type III) and Olica (2506.08436) decompose the product of W and O in this
way, with moments of x or without; here the moments are those of what attention gives.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pgprune.inspection.base_model import base_model
from pgprune.models.families import decoder_layers, family_of, head_sizes, linear_at
from pgprune.utils.progress import phase, track

_DAMPING = 1e-6  # of A and of s, relative to their mean and largest: keeps R invertible


@torch.no_grad()
def fit_rotations(model: nn.Module, windows: Tensor, pass_tokens: int = 2048) -> Tensor:
    """Finds the basis of each kv head.

    Args:
        model: a causal LM of a known family, dense.
        windows: calibration token ids, (N, T).
        pass_tokens: tokens that run through the model together.

    Returns:
        R of each layer and kv head, (L, kv heads, d, d) float32 on the CPU.
    """
    family = family_of(model.config)
    layers = decoder_layers(model, family)
    moments = [torch.zeros(0) for _ in layers]
    outputs = [linear_at(layer, family.output) for layer in layers]

    def adder(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        kv_heads, _, head_dim = head_sizes(layers[index], family)

        def add(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            heads = args[0].flatten(0, -2).unflatten(-1, (kv_heads, -1, head_dim))  # (n, h, q, d)
            wide = heads.to(torch.promote_types(heads.dtype, torch.float32))
            rows = wide.transpose(0, 1).flatten(1, 2)  # (kv heads, n * queries, d)
            total = (rows.mT @ rows).to("cpu", torch.float64)
            moments[index] = total + moments[index] if len(moments[index]) else total

        return add

    hooks = [output.register_forward_pre_hook(adder(i)) for i, output in enumerate(outputs)]
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    try:
        chunks = windows.split(max(1, pass_tokens // windows.shape[1]))
        with phase("rotation of values"):
            for chunk in track(chunks, "windows", unit="batches"):
                base_model(model)(input_ids=chunk.to(device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    rotations = [
        torch.stack([_basis(a, o) for a, o in zip(total, _of_heads(output, total), strict=True)])
        for output, total in zip(outputs, moments, strict=True)
    ]
    return torch.stack(rotations).float()


@torch.no_grad()
def rotate_values(model: nn.Module, rotations: Tensor) -> None:
    """Changes the basis of all values, in place, with the result of ``fit_rotations``."""
    family = family_of(model.config)
    for layer, bases in zip(decoder_layers(model, family), rotations.double(), strict=True):
        value, output = linear_at(layer, family.value), linear_at(layer, family.output)
        inverse = torch.linalg.inv(bases)  # (kv heads, d, d)
        for rows in (value.weight, value.bias):
            if rows is not None:
                heads = rows.to("cpu", torch.float64).view(*bases.shape[:2], -1)  # (kv heads, d, D)
                rows.copy_((inverse @ heads).view_as(rows))
        turned = _of_heads(output, bases) @ bases[:, None]  # (kv heads, queries, D, d)
        output.weight.copy_(turned.permute(2, 0, 1, 3).flatten(1))


def _basis(moment: Tensor, output: Tensor) -> Tensor:
    """Computes R = L V S^(-1/2) from A (d, d), up to a factor, and the O_q (queries, D, d)."""
    mean = moment.diagonal().mean()
    scaled = moment / mean if mean > 0 else torch.zeros_like(moment)
    lower = torch.linalg.cholesky(scaled + _DAMPING * torch.eye(len(scaled)).to(scaled))
    products = (output.mT @ output).sum(0)  # N
    squares, vectors = torch.linalg.eigh(lower.mT @ products @ lower)  # ascending s^2
    largest = squares[-1].sqrt() if squares[-1] > 0 else torch.ones_like(squares[-1])
    sizes = squares.clamp(min=0).sqrt().clamp(min=_DAMPING * largest)
    return (lower @ vectors * sizes.rsqrt()).flip(1)  # the coordinate that carries most comes first


def _of_heads(output: nn.Linear, heads: Tensor) -> Tensor:
    """Returns the columns of an output projection by head: (kv heads, queries, D, d) float64."""
    kv_heads, size = heads.shape[:2]
    weight = output.weight.to("cpu", torch.float64)
    return weight.view(len(weight), kv_heads, -1, size).permute(1, 2, 0, 3)
