"""The options of a training run that are not of a single agent or of pruning in general."""

from dataclasses import dataclass

from pgprune.agents.actions import KINDS
from pgprune.agents.registry import AGENTS
from pgprune.envs.precision import PRECISIONS
from pgprune.envs.reward import LOSSES, REWARDS
from pgprune.runs.settings import RunConfig
from pgprune.utils.options import Config, option

LEVELS = "levels"


@dataclass(frozen=True)
class AgentConfig(Config):
    """Agent: what chooses the masks, and what they are rewarded for."""

    agent: str = option(
        "reinforce",
        "algorithm: auto is recommended, reinforce is the paper's",
        choices=AGENTS,
    )
    action: str | None = option(
        None,
        "action of agents that have a choice: masks, layer densities, or unit scores",
        choices=list(KINDS),
        unset=", ".join(f"{name}: {it.actions[0]}" for name, it in AGENTS.items() if it.actions),
    )
    reward: str = option(
        "auto",
        "loss of what: the mask, its repair, or levels of refitted weights",
        choices=["auto", *REWARDS, LEVELS],
    )
    loss: str = option(
        "cross-entropy",
        "of rewards: against the text, or KL divergence from the dense model (kl)",
        choices=list(LOSSES),
    )
    reward_precision: str = option(
        "highest",
        "of float32 products in rewards; medium (bfloat16) is faster on new CPUs",
        choices=list(PRECISIONS),
    )
    reward_refit: int | None = option(
        None,
        "--reward repaired: steps between updates of the second moments",
        minimum=1,
        unset="a tenth of the run",
    )


@dataclass(frozen=True)
class TrainingRunConfig(RunConfig):
    """Run: how long, and where the results go."""

    total_timesteps: int = option(2000, "mask evaluations, each on 1,024 tokens", minimum=1)
    resume: str | None = option(
        None,
        "directory of an interrupted run to resume with its own settings",
        unset="start a new run",
        metavar="RUN",
    )
    checkpoint_every: int = option(50, "steps between checkpoints", minimum=1)
    ray_actors: int | None = option(
        None, "experimental: Ray actors that share the masks of a step", minimum=1, unset="none"
    )
