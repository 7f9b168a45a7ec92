"""What every command that leaves a run is asked: the seed, and what becomes of the run."""

from dataclasses import dataclass, field
from pathlib import Path

from pgprune.writers import FORMATS


@dataclass(frozen=True)
class RunConfig:
    """Run: where the results go, and what is made of them."""

    seed: int = field(default=0, metadata={"help": "seed of everything random", "minimum": 0})
    output: str | None = field(
        default=None, metadata={"help": "directory of the new run", "default": "a name in runs/"}
    )
    export: str | None = field(
        default=None,
        metadata={
            "help": "also write the pruned model, as scripts/export.py does by default, into a "
            "folder of that name in the run",
            "choices": list(FORMATS),
            "default": "no export",
        },
    )
    quiet: bool = field(default=False, metadata={"help": "print nothing but errors"})

    def name(self, method: str, model: str, prune_rate: float) -> str:
        """What a run is called that is not given a directory.

        Args:
            method: or agent.
            model: ``builtin``, a hub id or a directory.
            prune_rate: as asked.
        """
        return f"{method}-{Path(model).name}-{prune_rate:g}-seed{self.seed}"
