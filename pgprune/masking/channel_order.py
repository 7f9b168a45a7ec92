"""Orders the channels of each expert of a mixture, so that the first of all experts matter most.

All experts of a layer have the same width, so channels go together: one of each expert. Which ones
makes no difference to the model, as a permutation of the channels of an expert changes nothing that
it computes. Here channel j of an expert is the one that adds the j-th most to the residual stream:
sum_t (g_t a_tj)^2 |d_j|^2 over the tokens t of the expert, with the router's weight g, the input a
of the down projection and its column d. MLPs that are as wide as some experts are ordered likewise.
"""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pgprune.inspection.base_model import base_model
from pgprune.masking.expert_downs import DOWN, down_inputs
from pgprune.models.experts import Experts
from pgprune.models.families import decoder_layers, family_of
from pgprune.utils.progress import phase, track


@torch.no_grad()
def channel_energies(model: nn.Module, windows: Tensor, pass_tokens: int = 2048) -> list[Tensor]:
    """Measures what each channel of each expert adds to the residual stream.

    Args:
        model: a mixture of a known family, dense.
        windows: calibration token ids, (N, T).
        pass_tokens: tokens that run through the model together.

    Returns:
        Energies of each layer, (E + S, F) float64 on the CPU: of its experts, then of an MLP that
        is as wide as S of them; (0, 0) of a layer without experts.
    """
    family = family_of(model.config)
    assert family.experts is not None
    sums = [_Sums(layer, family.down, family.experts) for layer in decoder_layers(model, family)]
    device = model.get_input_embeddings().weight.device  # type: ignore[operator]
    chunks = windows.split(max(1, pass_tokens // windows.shape[1]))
    with ExitStack() as stack, phase("channels of experts"):
        for each in sums:
            each.listen(stack)
        for chunk in track(chunks, "windows", unit="batches"):
            base_model(model)(input_ids=chunk.to(device), use_cache=False)
    return [each.energies() for each in sums]


def fit_order(model: nn.Module, windows: Tensor) -> Tensor:
    """Finds the order of the channels of each expert; the arguments are those of the energies.

    Returns:
        Channels of each layer in their new order, (L, E + S, F) int32 on the CPU, zeros for a layer
        without experts. Those of an MLP as wide as S experts are dealt out to these.
    """
    energies = channel_energies(model, windows)
    family = family_of(model.config)
    assert family.experts is not None
    largest = max(energies, key=Tensor.numel).shape
    order = torch.zeros(len(energies), *largest, dtype=torch.int32)
    for row, layer, each in zip(order, decoder_layers(model, family), energies, strict=True):
        if each.numel():
            experts = len(family.experts.router_of(layer).weight)
            row[:experts] = each[:experts].argsort(dim=1, descending=True, stable=True)
            shared = each[experts:].flatten().argsort(descending=True, stable=True)  # (S * F,)
            row[experts:] = shared.view(each.shape[1], -1).T
    return order


@torch.no_grad()
def order_channels(model: nn.Module, order: Tensor) -> None:
    """Puts the channels of all experts into an order, in place, which ``fit_order`` returns."""
    family = family_of(model.config)
    assert family.experts is not None
    for layer, of_layer in zip(decoder_layers(model, family), order.long(), strict=True):
        if family.experts.router_of(layer) is None:
            continue
        experts = len(family.experts.router_of(layer).weight)
        for part in family.experts.channel_parts(layer):
            parameter = layer.get_parameter(part.name)
            if not part.name.startswith(f"{family.experts.experts}."):
                shared = of_layer[experts:].flatten()  # (S * F,)
                parameter.copy_(parameter.index_select(part.dim, shared.to(parameter.device)))
                continue
            for expert, own in zip(parameter, of_layer[:experts], strict=True):
                index = part.index(own).to(parameter.device)
                expert.copy_(expert.index_select(part.dim - 1, index))


class _Sums:
    """Sums of squares of the inputs of down projections in one layer.

    Args:
        layer: the decoder layer.
        down: its MLP.
        names: where its experts are.
    """

    def __init__(self, layer: nn.Module, down: str, names: Experts) -> None:
        self.layer, self.names = layer, names
        self.mlp = layer.get_submodule(down)
        self.router = names.router_of(layer)
        self.squares = self.shared = torch.zeros(0)
        if self.router is not None:
            self.experts: Any = layer.get_submodule(names.experts)
            self.squares = torch.zeros(len(self.router.weight), names.width_of(layer)).double()

    def listen(self, stack: ExitStack) -> None:
        """Adds up until the stack ends."""
        if self.router is None:
            return
        stack.callback(self.mlp.register_forward_pre_hook(self._add).remove)
        if self.names.shared is not None:
            down = self.layer.get_submodule(f"{self.names.shared}.{DOWN}")
            stack.callback(down.register_forward_pre_hook(self._add_shared).remove)

    def energies(self) -> Tensor:
        """Returns the squares times those of the columns, (E + S, F)."""
        if self.router is None:
            return torch.zeros(0, 0).double()
        down = self.experts.get_parameter(DOWN)
        outputs = 3 - self.names.inner[DOWN]  # the other dimension but that of experts
        energies = [self.squares * down.double().square().sum(outputs).cpu()]
        if self.names.shared is not None:
            weight = self.layer.get_parameter(f"{self.names.shared}.{DOWN}.weight")  # (D, S * F)
            of_shared = self.shared * weight.double().square().sum(0).cpu()
            energies.append(of_shared.view(-1, self.squares.shape[1]))
        return torch.cat(energies)

    def _add(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        states = args[0].reshape(-1, args[0].shape[-1])  # (N, D)
        weights, chosen = self.names.chosen(self.router, states)  # (N, k)
        for expert, squares in enumerate(self.squares):
            tokens, slots = torch.nonzero(chosen == expert, as_tuple=True)
            if len(tokens):
                sent = states[tokens], weights[tokens, slots]  # (t, D), (t,)
                inputs = down_inputs(self.names, self.experts, expert, *sent)
                squares += inputs[:, : len(squares)].double().square().sum(0).cpu()

    def _add_shared(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        total = args[0].flatten(0, -2).double().square().sum(0).cpu()  # (S * F,)
        self.shared = self.shared + total if len(self.shared) else total
