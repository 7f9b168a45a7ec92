"""Agents that choose pruning masks; each is one file that reads from top to bottom."""

from pgprune.agents.a2c import A2cConfig
from pgprune.agents.auto import Auto, AutoConfig
from pgprune.agents.base import Agent
from pgprune.agents.cma_es import CMAES, CMAESConfig
from pgprune.agents.evolution import Evolution, EvolutionConfig
from pgprune.agents.ppo import PpoConfig
from pgprune.agents.random_search import RandomSearch, RandomSearchConfig
from pgprune.agents.reinforce import Reinforce, ReinforceConfig
from pgprune.agents.sac import SacConfig
from pgprune.agents.stable_baselines import Sb3Agent
from pgprune.agents.td3 import Td3Config
from pgprune.agents.trpo import TrpoConfig

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
