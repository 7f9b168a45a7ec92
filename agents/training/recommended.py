"""What `--agent auto` chooses where nothing else is asked for: what is best on a real model.

Measured on SmolLM2-135M (docs/real_model.md). The defaults of other agents are the paper's setting.
"""

import argparse
from typing import Any

from pgprune.agents.auto import AutoConfig
from pgprune.agents.training.config import LEVELS
from pgprune.data.stream import DataConfig
from pgprune.utils.command_line import given
from pgprune.utils.process_ids import world_size

_TOKENS = 2**17  # that levels are fitted on
_WITH_EXPERTS = {"repair": "least-squares"}  # docs/experts.md: it gains more than a better mask
_WITHOUT_LEVELS = {
    "granularity": ("blocks", "layers"),
    "scope": ("local", "uniform"),
    "repair": ("none", "bias"),
    "reward": ("plain", "repaired"),
}


def recommended(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the options that the recommended agent chooses itself, by name.

    What is typed is not among them. If neither levels nor experts go with it, nothing is, and the
    agent searches masks of the model's own weights.

    Args:
        arguments: parsed options of a command, without those that were not given.
    """
    typed = vars(arguments)
    if typed.get("agent") != "auto":
        return {}
    experts = "experts" in typed.get("granularity", "")
    options = _WITH_EXPERTS if experts else _for_levels(arguments)
    return {name: value for name, value in options.items() if name not in typed}


def _for_levels(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what goes with levels, or nothing where what is typed does not go with them."""
    typed = vars(arguments)
    others = any(typed.get(name) in values for name, values in _WITHOUT_LEVELS.items())
    alone = "ray_actors" not in typed and world_size() == 1
    if others or not alone or given(AutoConfig, arguments):
        return {}
    # Exports fill value dimensions with zeros, so that they shrink neither cache nor, much, time.
    plain = all(text.startswith("parameters") for text in typed.get("target") or ())
    length = typed.get("sequence_length", DataConfig().sequence_length)
    return {
        "granularity": "values+channels" if plain else "heads+channels",
        "budget": "parameters",
        "reward": LEVELS,
        "loss": "kl",
        "reward_precision": "medium",
        "repair_samples": max(1, _TOKENS // length),
        "total_timesteps": 400,
    }
