"""Agents that choose pruning masks; each is one file that reads from top to bottom."""

from pgprune.agents.auto import Auto, AutoConfig
from pgprune.agents.base import Agent
from pgprune.agents.reinforce import Reinforce, ReinforceConfig

__all__ = ["Agent", "Auto", "AutoConfig", "Reinforce", "ReinforceConfig"]
