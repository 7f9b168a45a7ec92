"""Agents that choose pruning masks; each is one file that reads from top to bottom."""

from pgprune.agents.auto import Auto, AutoConfig
from pgprune.agents.base import Agent
from pgprune.agents.cma_es import CMAES, CMAESConfig
from pgprune.agents.evolution import Evolution, EvolutionConfig
from pgprune.agents.random_search import RandomSearch, RandomSearchConfig
from pgprune.agents.reinforce import Reinforce, ReinforceConfig
from pgprune.agents.sb3_off_policy import SacConfig, Td3Config
from pgprune.agents.sb3_on_policy import A2cConfig, PpoConfig, TrpoConfig
from pgprune.agents.stable_baselines import Sb3Agent

__all__ = [
    "A2cConfig",
    "Agent",
    "Auto",
    "AutoConfig",
    "CMAES",
    "CMAESConfig",
    "Evolution",
    "EvolutionConfig",
    "PpoConfig",
    "RandomSearch",
    "RandomSearchConfig",
    "Reinforce",
    "ReinforceConfig",
    "SacConfig",
    "Sb3Agent",
    "Td3Config",
    "TrpoConfig",
]
