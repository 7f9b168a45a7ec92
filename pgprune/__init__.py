"""Structural pruning of large language models as a reinforcement-learning problem.

The import registers the Gymnasium environment ``pgprune/LLMPruning-v0`` and loads neither torch nor
transformers. ``pgprune.register()`` lets transformers load exports without ``trust_remote_code``.
"""

from pgprune.utils.ctrl_c import end_at_once, is_command

if is_command():  # before the first import that takes a while
    end_at_once()

import gymnasium

from pgprune.errors import PruningError
from pgprune.models.registration import register

__version__ = "0.1.0"
__all__ = ["PruningError", "__version__", "register"]

gymnasium.register(
    id="pgprune/LLMPruning-v0",
    entry_point="pgprune.envs:LLMPruningEnv",
    vector_entry_point="pgprune.envs:LLMPruningVectorEnv",
)
