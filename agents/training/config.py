"""The options of a training run that are not of a single agent or of pruning in general."""

from dataclasses import dataclass
from itertools import pairwise

from pgprune.agents.actions import KINDS
from pgprune.agents.registry import AGENTS
from pgprune.envs.precision import PRECISIONS
from pgprune.envs.reward import LOSSES, REWARDS
from pgprune.errors import PruningError
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


@dataclass(frozen=True)
class SweepConfig(Config):
    """Sweep: one search for models of several sizes."""

    prune_rates: tuple[float, ...] | None = option(
        None,
        "one search for a model at each of these rates, from low to high",
        above=0,
        below=1,
        unset="one model, at --prune-rate",
    )
    nested: bool = option(False, "--prune-rates: each model is a part of the larger ones")

    def __post_init__(self) -> None:
        """Refuses what an option does not allow, and rates that are no sweep."""
        super().__post_init__()
        rates = self.prune_rates
        if rates is None:
            if self.nested:
                raise PruningError(
                    "--nested is about the models of --prune-rates, which are not given; name "
                    "rates, or leave --nested out"
                )
            return
        said = " ".join(f"{rate:g}" for rate in rates)
        if len(rates) == 1:
            raise PruningError(
                f"--prune-rates {said} is a single rate; give two or more, or --prune-rate {said}"
            )
        ordered = " ".join(f"{rate:g}" for rate in sorted({*rates}))
        if any(low >= high for low, high in pairwise(rates)):
            raise PruningError(
                f"--prune-rates {said} do not rise; name each once, from low to high: {ordered}"
            )
