"""Finds the heads of an attention module by what its projections reach."""

import re
from collections.abc import Iterable
from typing import Any

import torch

from pgprune.inspection.probe import Probe

_PROBED_UNITS = 16  # of a projection: an inactive one reaches nothing, which says nothing


def find_heads(probe: Probe, attention: str, output: str) -> tuple[str, str, str] | str:
    """Finds the query, key and value projections, or says why heads cannot be told apart.

    Args:
        probe: of a layer.
        attention: its attention module.
        output: the attention output projection.
    """
    width = probe.plain.inputs[output].shape[1]
    inside = [path for path in probe.linears if path.startswith(f"{attention}.")]
    paths = [path for path in inside if path != output]
    size = getattr(probe.layer.get_submodule(attention), "head_dim", None)
    if len(paths) != 3:
        return f"query, key and value are no projections of their own, only {named(paths)}"
    if not isinstance(size, int) or width % size:
        return f"{attention} does not say how wide its heads are (head_dim)"
    found: dict[str, str] = {}
    for path in paths:
        roles = _roles(probe, path, output, width, size)
        if len(roles) != 1 or roles[0] in found:
            return f"the outputs of {path} do not belong to one head each"
        found[roles[0]] = path
    return found["query"], found["key"], found["value"]


def _roles(probe: Probe, path: str, output: str, width: int, size: int) -> list[str]:
    """Tells what a projection can be by the inputs of the output projection that it reaches."""
    outputs = probe.linears[path].out_features
    if outputs % size or width % outputs:
        return []
    group = width // outputs  # query heads of a kv head
    roles = {"query", "key", "value"} if group == 1 else {"key", "value"}
    wide = False  # a value dimension reaches one input of each query head only
    for unit in some_units(outputs):
        reached = probe.reached(path, unit).get(output)
        if reached is None:
            continue
        columns = reached.any(0).nonzero().flatten()
        head, dimension = divmod(unit, size)
        if not bool((columns // (size * group) == head).all()):
            return []
        if bool(reached[2:].any()):
            roles.discard("query")
        if not bool((columns % size == dimension).all()):
            wide = True
    if wide:
        roles.discard("value")
    if "query" in roles:
        return ["query"] if wide else []
    return ["key"] if wide else ["value"]


def head_counts(probe: Probe, attention: str, query: str, key: str) -> dict[str, str]:
    """Finds attributes of an attention module that are its numbers of heads, where it reads any.

    Args:
        probe: of a layer.
        attention: its attention module.
        query: the query projection; empty where heads are not known.
        key: the key projection.
    """
    module: Any = probe.layer.get_submodule(attention)
    counts: dict[str, str] = {}
    for kind, path in (("heads", query), ("kv_heads", key)) if query else ():
        count = probe.linears[path].out_features // module.head_dim
        for name, value in vars(module).items():
            of_keys = "key" in name or "kv" in name
            if re.fullmatch(r"num_\w*heads", name) and of_keys == (kind == "kv_heads"):
                counts |= {name: kind} if value == count else {}
    return counts


def some_units(outputs: int) -> list[int]:
    """Chooses outputs of a projection to probe, spread over all of them."""
    return sorted(set(torch.linspace(0, outputs - 1, _PROBED_UNITS).int().tolist()))


def named(names: Iterable[str]) -> str:
    """Lists names for an error."""
    return ", ".join(names) or "none"
