"""Gymnasium environments in which an action is a pruning mask of a frozen language model."""

from pgprune.envs.level_action import LevelAction, VectorLevelAction
from pgprune.envs.llm_pruning import LLMPruningEnv
from pgprune.envs.vector import LLMPruningVectorEnv
from pgprune.envs.wrappers import DensityAction, ScoreAction, VectorDensityAction, VectorScoreAction

__all__ = [
    "DensityAction",
    "LLMPruningEnv",
    "LLMPruningVectorEnv",
    "LevelAction",
    "ScoreAction",
    "VectorDensityAction",
    "VectorLevelAction",
    "VectorScoreAction",
]
