"""Gymnasium environments in which an action is a pruning mask of a frozen language model."""

from pgprune.envs.llm_pruning import LLMPruningEnv
from pgprune.envs.vector import LLMPruningVectorEnv
from pgprune.envs.wrappers import DensityAction, ScoreAction, VectorDensityAction, VectorScoreAction

__all__ = [
    "DensityAction",
    "LLMPruningEnv",
    "LLMPruningVectorEnv",
    "ScoreAction",
    "VectorDensityAction",
    "VectorScoreAction",
]
