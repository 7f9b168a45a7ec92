"""Agents that choose pruning masks; each is one file that reads from top to bottom."""

from pgprune.agents.auto import Auto, AutoConfig
from pgprune.agents.base import Agent
from pgprune.agents.off_policy import SacConfig, Td3Config
from pgprune.agents.on_policy import A2cConfig, PpoConfig, TrpoConfig
from pgprune.agents.reinforce import Reinforce, ReinforceConfig
from pgprune.agents.stable_baselines import Sb3Agent

__all__ = [
    "A2cConfig",
    "Agent",
    "Auto",
    "AutoConfig",
    "PpoConfig",
    "Reinforce",
    "ReinforceConfig",
    "SacConfig",
    "Sb3Agent",
    "Td3Config",
    "TrpoConfig",
]
