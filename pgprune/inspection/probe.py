"""Runs one layer on a few tokens with a change, and tells what the change reaches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pgprune.errors import PruningError
from pgprune.inspection.base_model import base_model

PROBE_TOKENS = 6
_FAR = 3.0  # times the largest output: past the flat part of an activation


class LayerInputs(NamedTuple):
    """What a decoder layer is called with: the hidden states first, (B, T, D)."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def probe_ids(model: PreTrainedModel, batch: int) -> Tensor:
    """Returns a few tokens of the vocabulary that differ, (batch, T) int64, on the device."""
    embeddings: Any = model.get_input_embeddings()
    count = batch * PROBE_TOKENS
    ids = torch.arange(3, 3 + 7 * count, 7) % embeddings.weight.shape[0]
    return ids.view(batch, PROBE_TOKENS).to(embeddings.weight.device)


def layer_inputs(model: PreTrainedModel, layers: nn.ModuleList, ids: Tensor) -> list[LayerInputs]:
    """Records what the layers are called with for tokens (B, T).

    Raises:
        PruningError: a layer is not called once, or not with hidden states first.
    """
    calls: dict[int, list[LayerInputs]] = {index: [] for index in range(len(layers))}

    def record(index: int) -> Callable[..., None]:
        return lambda layer, args, kwargs: calls[index].append(LayerInputs(args, kwargs))

    hooks = [
        layer.register_forward_pre_hook(record(index), with_kwargs=True)
        for index, layer in enumerate(layers)
    ]
    try:
        base_model(model)(input_ids=ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for index, found in calls.items():
        if len(found) != 1 or not found[0].args or not isinstance(found[0].args[0], Tensor):
            raise PruningError(
                f"layer {index} is called {len(found)} times for a text, or not with hidden states "
                "first"
            )
    return [found[0] for found in calls.values()]


def run_layer(layer: nn.Module, inputs: LayerInputs) -> Tensor:
    """Runs a layer: (B, T, D) -> (B, T, D)."""
    output = layer(*inputs.args, **inputs.kwargs)
    return output[0] if isinstance(output, tuple) else output


class Seen(NamedTuple):
    """What the modules of a layer got and gave in one call, by path, in the order of their calls.

    Inputs and outputs are (tokens, width).
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class Probe:
    """Runs one layer, with changes of outputs of its projections.

    Args:
        layer: a decoder layer.
        inputs: of one sequence.
    """

    def __init__(self, layer: nn.Module, inputs: LayerInputs) -> None:
        self.layer = layer
        self._inputs = inputs
        self.linears = {p: m for p, m in layer.named_modules() if isinstance(m, nn.Linear)}
        self._watched = {p: m for p, m in layer.named_modules() if p and not list(m.children())}
        self.plain = self.run()

    def run(self, path: str = "", change: Callable[[Tensor], Tensor] | None = None) -> Seen:
        """Runs the layer; ``change`` takes and returns the outputs of a projection."""
        seen = Seen({}, {})

        def note(name: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
                if not (args and isinstance(args[0], Tensor) and isinstance(output, Tensor)):
                    return None
                if name == path and change is not None:
                    output = change(output)
                seen.inputs[name] = args[0].reshape(-1, args[0].shape[-1])
                seen.outputs[name] = output.reshape(-1, output.shape[-1])
                return output

            return hook

        with _hooked(self._watched, note):
            run_layer(self.layer, self._inputs)
        return seen

    def reached(self, path: str, unit: int) -> dict[str, Tensor]:
        """Tells what one output of a projection, at the second token, reaches.

        Returns:
            By path, which inputs (tokens, width) of other projections differ, where any do.
        """
        far = _FAR * self.plain.outputs[path].abs().max() + 1

        def change(output: Tensor) -> Tensor:
            changed = output.clone()
            rows = changed.view(-1, output.shape[-1])
            rows[1, unit] = torch.where(rows[1, unit] > 0, -far, far)
            return changed

        seen = self.run(path, change).inputs
        differ = {
            name: seen[name] != self.plain.inputs[name]
            for name in self.linears
            if name != path and name in seen
        }
        return {name: where for name, where in differ.items() if bool(where.any())}

    def follows(self, path: str, projection: str) -> bool:
        """Whether a module reads what a projection gives."""
        gets, given = self.plain.inputs[path], self.plain.outputs[projection]
        return gets.shape == given.shape and torch.equal(gets, given)

    def negated(self, path: str, target: str) -> bool:
        """Whether the inputs of a projection change their sign with the outputs of another."""
        inputs = self.run(path, torch.neg).inputs[target]
        return torch.equal(inputs, -self.plain.inputs[target])


@contextmanager
def _hooked(modules: dict[str, nn.Module], hook: Callable[[str], Any]) -> Iterator[None]:
    hooks = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
