"""Compares units of attention by the error that they leave, as a Markdown table.

    python benchmarks/finer_units.py --model smollm2 --calibration c4

The error is that of the hidden states after a block, squared and over their square, the mean over
tokens, with what is kept of the output projection refitted. The loss rises in proportion to it. A
row has the least sum over all layers for a share of the parameters, where MLP channels may be cut
and, in each layer, one kind of the units of attention:

- value dimensions, after the rotation that concentrates them;
- single query heads, with their columns of the output projection;
- rotary pairs: the same two dimensions of q and k of all query heads of a kv head, those with the
  smallest mean square of q times that of k first.

For models with the modules of Llama. Keys and values that no query head reads are not counted.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from fine_problem import add_model, fine_problem
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from pgprune.budget.level_grid import grid as level_grid
from pgprune.budget.problem import Problem
from pgprune.masking.masked_lm import MaskedLM
from pgprune.repair.fit import DAMPING
from pgprune.repair.fit_levels import fit_levels
from pgprune.utils.markdown import grid

Curve = list[tuple[float, float]]
"""Parameters that are pruned of a group, and the error that this leaves."""

_SHARES = (0.1, 0.2, 0.3, 0.4)
_KINDS = {
    "channels alone": (),
    "and value dimensions": ("values",),
    "and rotary pairs": ("pairs",),
    "and query heads": ("queries",),
    "and all of these": ("values", "pairs", "queries"),
}


@torch.no_grad()
def main() -> None:
    """Prints one row for each choice of units."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    options = parser.parse_args()
    problem = fine_problem(options)
    windows = problem.stream.head(options.windows)
    curves = of_levels(problem, windows)
    for found, more in zip(curves, of_queries_and_keys(problem.lm, windows), strict=True):
        found |= more
    total = problem.units.prunable + sum(
        each.query_key_cost * each.kv_heads for each in problem.units.shapes
    )
    rows = []
    for name, kinds in _KINDS.items():
        cells = (least_error(curves, kinds, share * total) for share in _SHARES)
        rows.append([name, *(f"{error:.4f}" for error in cells)])
    print(grid(["units", *(f"{share:.0%}" for share in _SHARES)], rows))


def of_levels(problem: Problem, windows: Tensor) -> list[dict[str, Curve]]:
    """Fits levels of value dimensions and channels; returns the curves of each layer."""
    kept, _ = level_grid(problem.budget)
    with tempfile.TemporaryDirectory() as folder:
        levels = fit_levels(problem.lm, windows, kept, Path(folder))
    units, curves = problem.units, [dict[str, Curve]() for _ in range(problem.units.layers)]
    for group, found in zip(units.groups, levels.groups, strict=True):
        cost = float(units.cost[group.start])
        pruned = (float(found.kept[0]) - found.kept) * cost
        curves[group.layer][group.kind] = list(
            zip(pruned.tolist(), found.errors.tolist(), strict=True)
        )
    return curves


def of_queries_and_keys(lm: MaskedLM, windows: Tensor) -> Iterator[dict[str, Curve]]:
    """Runs the dense model layer by layer; yields the curves of query heads and rotary pairs."""
    decoder = lm.model.model
    states = decoder.embed_tokens(windows)  # (N, T, D)
    rotary = decoder.rotary_emb(states, torch.arange(windows.shape[1])[None])
    for layer in decoder.layers:
        attention = Attention(layer, states, rotary)
        yield {"queries": attention.queries(), "pairs": attention.pairs()}
        states = attention.after
        states = states + layer.mlp(layer.post_attention_layernorm(states))


class Attention:
    """The attention block of a layer on given states (N, T, D)."""

    def __init__(self, layer: nn.Module, states: Tensor, rotary: tuple[Tensor, Tensor]) -> None:
        block, n, t = layer.self_attn, *states.shape[:2]
        x, self.head_dim = layer.input_layernorm(states), block.head_dim
        q, k, self.v = (
            linear(x).view(n, t, -1, self.head_dim).transpose(1, 2)  # (N, heads, T, head_dim)
            for linear in (block.q_proj, block.k_proj, block.v_proj)
        )
        self.q, self.k = apply_rotary_pos_emb(q, k, *rotary)
        self.inputs = self._attend(self.q, self.k)  # (tokens, inputs)
        self.outputs = block.o_proj(self.inputs)  # (tokens, D)
        self.after = states + self.outputs.view_as(states)
        self.weights = 1 / self.after.flatten(0, 1).double().square().sum(1)  # (tokens,)

    def _attend(self, q: Tensor, k: Tensor) -> Tensor:
        found = nn.functional.scaled_dot_product_attention(
            q, k, self.v, is_causal=True, enable_gqa=True
        )  # (N, heads, T, head_dim)
        return found.transpose(1, 2).flatten(2).flatten(0, 1)

    def _error(self, inputs: Tensor) -> float:
        """Refits the output projection to other inputs (tokens, i); returns what is left."""
        some, y = inputs.double(), self.outputs.double()
        weighted = some * self.weights[:, None]
        moments = weighted.T @ some  # (i, i)
        moments.diagonal().add_(DAMPING * moments.diagonal().mean())
        weight = torch.linalg.solve(moments, weighted.T @ y)  # (i, D)
        return float(((y - some @ weight).square().sum(1) * self.weights).mean())

    def queries(self) -> Curve:
        """Prunes up to half of the query heads, each time the one that leaves the least error."""
        heads, width = self.q.shape[1], self.head_dim
        split, left, curve = self.inputs.unflatten(1, (heads, width)), list(range(heads)), Curve()
        cost = 2.0 * width * self.outputs.shape[1]  # rows of q, columns of o
        for pruned in range(1, heads // 2 + 1):
            error, worst = min(
                (self._error(split[:, [i for i in left if i != head]].flatten(1)), head)
                for head in left
            )
            left.remove(worst)
            curve.append((pruned * cost, error))
        return curve

    def pairs(self) -> Curve:
        """Prunes an eighth, a quarter, a half and three quarters of the rotary pairs."""
        kv_heads, half = self.k.shape[1], self.head_dim // 2
        q, k = (x.unflatten(-1, (2, half)).square().sum(-2).mean((0, 2)) for x in (self.q, self.k))
        energy = q.view(kv_heads, -1, half).mean(1) * k  # (kv_heads, half)
        order, curve = energy.argsort(1, descending=True), Curve()
        cost = 2.0 * (self.q.shape[1] + kv_heads) * self.outputs.shape[1]  # rows of q and k
        for kept in (7 * half // 8, 3 * half // 4, half // 2, half // 4):
            mask = torch.zeros_like(energy).scatter_(1, order[:, :kept], 1.0).repeat(1, 2)
            error = self._error(self._attend(self.q, self.k * mask[None, :, None]))
            curve.append(((half - kept) * cost, error))
        return curve


def least_error(curves: list[dict[str, Curve]], kinds: tuple[str, ...], parameters: float) -> float:
    """Finds the least sum of errors with a number of pruned parameters, by a price of a parameter.

    Args:
        curves: of each layer, by kind.
        kinds: of attention's units, of which a layer may prune one, beside ``channels``.
        parameters: to be pruned.
    """
    groups = [layer["channels"] for layer in curves]
    groups += [
        [(0.0, 0.0), *(point for kind in kinds for point in layer[kind])] for layer in curves
    ]
    low, high = 0.0, 1.0
    for _ in range(100):
        price = (low + high) / 2
        chosen = [min(group, key=lambda point: point[1] - price * point[0]) for group in groups]
        if sum(pruned for pruned, _ in chosen) < parameters:
            low = price
        else:
            high = price
    chosen = [min(group, key=lambda point: point[1] - high * point[0]) for group in groups]
    return sum(error for _, error in chosen)


if __name__ == "__main__":
    main()
