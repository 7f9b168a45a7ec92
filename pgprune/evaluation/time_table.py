"""Measures the table of times that targets of latency need, once for a device and a batch.

Layers are alike, so a model of a few of them is measured: dense, with half the layers, and with a
part of each kind of unit. All are measured in turn, so that drifts of the machine's speed cancel.
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from pgprune.budget.targets import TIMES, Target
from pgprune.budget.times import TimeTable, table_path
from pgprune.errors import PruningError
from pgprune.evaluation.latency import generate
from pgprune.evaluation.timing import Clock, measure_in_turn
from pgprune.masking.units import PruningUnits
from pgprune.models.families import family_of, is_found
from pgprune.surgery.layers import prune
from pgprune.utils.devices import machine
from pgprune.utils.files import saving
from pgprune.utils.memory import within_memory
from pgprune.utils.progress import note, phase

LAYERS = 4
"""Layers that are measured, if a model has as many."""

_SHARES = (0.25, 0.5, 0.75)
_ROUNDS = 7
_NEW_TOKENS = 8  # of decoding


def times(target: Target, model: PreTrainedModel, units: PruningUnits) -> TimeTable:
    """Reads the table of times that a target needs, or measures and keeps it.

    Raises:
        PruningError: the table is damaged or of another device, the context is too short, or the
            layers of the family cannot be made anew.
    """
    path = table_path(target, model, units)
    if path.exists():
        return TimeTable.load(path, model.device)
    with phase(f"measuring times for {target.text}"):
        table = measure_times(model, units, target.batch, target.length, _ROUNDS)
    with saving(path):
        table.save(path)
    note(f"times of {target.batch} x {target.length} tokens are kept in {path}")
    return table


def measure_times(
    model: PreTrainedModel, units: PruningUnits, batch: int, length: int, rounds: int = _ROUNDS
) -> TimeTable:
    """Measures a table of times.

    Args:
        model: the dense model, whose shapes and number format count.
        units: of the model.
        batch: texts at once.
        length: tokens of each; what is decoded follows them.
        rounds: of all models.

    Raises:
        PruningError: the context is too short, or the layers of the family cannot be made anew.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest and length + _NEW_TOKENS > longest:
        raise PruningError(
            f"times of {length} tokens and {_NEW_TOKENS} new ones do not fit into the context of "
            f"{longest}; choose a shorter length"
        )
    many = min(LAYERS, units.layers)
    few = max(1, many // 2)
    dense = _shallow(model, many)
    own = PruningUnits.of(dense, units.granularity, units.channel_block)
    models = {"dense": dense, "few": _shallow(model, few)}
    shares = {}
    for kind in (kind for kind in own.kinds if kind != "layer"):
        whole = max(g.stop - g.start for g in own.groups if g.kind == kind) == 1
        for share in (0.0,) if whole else _SHARES:
            mask = _mask(own, kind, share)
            if mask is not None:
                kept = own.kind_shares(mask[None])[0, own.kinds.index(kind)]
                shares[f"{kind} {share}"] = kind, float(kept)
                models[f"{kind} {share}"] = prune(dense, own, mask)
    vocabulary, generator = int(model.config.vocab_size), torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (batch, length + _NEW_TOKENS), generator=generator)
    works = {name: partial(generate, each, ids, length) for name, each in models.items()}
    alone = model.device.type == "cpu" and torch.get_num_threads() == 1
    clock = Clock(model.device, "processor" if alone else "wall")  # the same on an idle machine
    with within_memory("choose a smaller batch or length"):
        seconds, _ = measure_in_turn(works, rounds, clock)
    # The phases of each round, in the order of TIMES: (rounds, 2) by name.
    table = {name: torch.tensor(each, dtype=torch.float64) for name, each in seconds.items()}
    layer = _median(table["dense"] - table["few"]) / max(1, many - few)  # (2,)
    total = _median(table["dense"]) + (units.layers - many) * layer
    falls: dict[str, dict[str, list[list[float]]]] = {
        kind: {name: [[1.0, 0.0]] for name in TIMES} for kind in units.kinds
    }
    for name, (kind, share) in shares.items():
        fall = _median(table[name] - table["dense"]) / many
        for place, time in enumerate(TIMES):
            falls[kind][time].append([share, float(fall[place])])
    if "layer" in falls:
        falls["layer"] = {t: [[0, -float(layer[i])], [1, 0]] for i, t in enumerate(TIMES)}
    tidy = {kind: {t: _rising(pairs) for t, pairs in of.items()} for kind, of in falls.items()}
    return TimeTable(machine(model.device), dict(zip(TIMES, total.tolist(), strict=True)), tidy)


def _shallow(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """Makes a model of the first layers with random weights, in the same format and place."""
    if is_found(model.config):
        raise PruningError(
            f"times of the unlisted family {model.config.model_type} cannot be measured, as its "
            "layers cannot be made anew; limit parameters or memory instead"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    for name in family_of(config).layer_lists:
        if getattr(config, name, None) is not None:
            setattr(config, name, list(getattr(config, name))[:layers])
    config.use_cache = True
    with torch.random.fork_rng(), torch.device(model.device):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    return made.eval().requires_grad_(False)


def _mask(units: PruningUnits, kind: str, share: float) -> Tensor | None:
    """Returns a mask that keeps a share of a kind in each layer, (n,); None if that is not less.

    Neighbouring layers differ by a unit, and numbers of channels are odd, as those of masks are.
    """
    mask = units.ones()
    pairs = zip(units.groups, units.least.tolist(), strict=True)
    for group, least in ((group, least) for group, least in pairs if group.kind == kind):
        size = group.stop - group.start
        count = round(share * size) if size > 1 else 0
        odd = group.layer % 2 if size > 16 else 0
        count = max(least, count - odd)
        if count >= size:
            return None
        mask[group.start + count : group.stop] = 0
    return mask


def _median(rounds: Tensor) -> Tensor:
    """Computes medians over rounds, (rounds, 2) -> (2,)."""
    return rounds.quantile(0.5, dim=0)


def _rising(pairs: Sequence[Sequence[float]]) -> list[list[float]]:
    """Orders pairs of share and fall, and makes falls rise to 0; goes on in a line to share 0."""
    known = dict(sorted((share, min(0.0, fall)) for share, fall in pairs))
    if 0 not in known:
        (first, fall), (second, next_fall) = (
            list(known.items())[:2] if len(known) > 1 else ((0.5, 0.0), (1.0, 0.0))
        )
        slope = max(0.0, (next_fall - fall) / (second - first))
        known = {0.0: fall - first * slope, **known}
    rising, highest = [], -float("inf")
    for share, fall in known.items():
        highest = max(highest, fall)
        rising.append([share, highest])
    return rising
