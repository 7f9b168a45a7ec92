"""What all agents of this project share: the answer, and saving without a pickle."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pgprune.errors import PruningError
from pgprune.files import saving, tensor_bytes, write_file


class Agent(ABC):
    """An agent's answer and its state; how it learns is its own file's matter."""

    @abstractmethod
    def mask(self) -> Tensor:
        """The answer: a mask within the budget, (n,) uint8 on the CPU."""

    @abstractmethod
    def draw(self) -> Tensor:
        """One mask from the current policy, (n,) uint8."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that a resume needs: tensors, and values that JSON can hold."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Continues from what ``state`` returned."""

    def predict(
        self, observation: Any = None, state: Any = None, deterministic: bool = True
    ) -> tuple[npt.NDArray[np.int8], Any]:
        """A mask (n,) as an action: the answer, or a draw from the policy.

        Args:
            observation: not used, as what comes next does not depend on the last mask.
            state: returned as it is.
            deterministic: the answer instead of a draw.
        """
        mask = self.mask() if deterministic else self.draw()
        return mask.cpu().numpy().astype(np.int8), state

    def save(self, path: str | Path) -> None:
        """Writes the agent's state to one safetensors file.

        Raises:
            PruningError: the file cannot be written.
        """
        tensors, values = self.state()
        with saving(Path(path), "choose another place"):
            write_file(Path(path), tensor_bytes(tensors, {"state": json.dumps(values)}))

    def load(self, path: str | Path) -> "Agent":
        """Reads the state that ``save`` wrote into this agent, and returns it.

        Raises:
            PruningError: no such file, damaged, or of an agent over other units.
        """
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                values = json.loads(file.metadata()["state"])
        except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
            raise PruningError(f"{path} is not a saved agent: {error}") from error
        self.restore(tensors, values)
        return self
