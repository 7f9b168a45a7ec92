"""Structural pruning of large language models as a reinforcement-learning problem.

The import registers the Gymnasium environment ``pgprune/LLMPruning-v0``, and pruned models with
transformers. It loads neither torch nor transformers.
"""

import gymnasium

from pgprune.errors import PruningError
from pgprune.models.registration import register_with_transformers

__version__ = "0.1.0"
__all__ = ["PruningError", "__version__"]

gymnasium.register(
    id="pgprune/LLMPruning-v0",
    entry_point="pgprune.envs:LLMPruningEnv",
    vector_entry_point="pgprune.envs:LLMPruningVectorEnv",
)
register_with_transformers()
