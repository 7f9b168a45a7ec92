"""The state of a run besides its agent's: figures and masks in every checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from torch import Tensor

from pgprune.runs.results import Perplexities

_WATCHED = {
    "loss": "rollout/loss",
    "baseline": "train/baseline",
    "reward": "rollout/reward",
    "best": "validation/best_loss",
}
_KEPT_SHARE = "kept_share/"


@dataclass
class Record:
    """Figures and masks collected over all sessions of a run.

    Attributes:
        masks: ``initial`` is the metric's own, ``best`` the best rounded one on the validation
            batch, (n,) uint8.
        perplexity: by row (dense, initial, ...) and evaluation set.
        standard_error: of the perplexities.
        windows: evaluation windows, by set.
        validation_loss: of the last rounded mask that was validated.
        best_loss: of ``best``.
        curve: of each validation, the first before learning: its ``loss``, and the
            ``mask_evaluations``, ``tokens`` and ``seconds`` of the method until then.
        tokens: tokens asked of the model.
        seconds: of the command.
        evaluation_seconds: of them, for perplexities and samples of text.
        evaluation_tokens: of the tokens, for the same.
        peak_memory: bytes.
        beyond_weights: bytes of the peak beyond what was in use after loading.
    """

    masks: dict[str, Tensor] = field(default_factory=dict)
    perplexity: dict[str, dict[str, float]] = field(default_factory=dict)
    standard_error: dict[str, dict[str, float]] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    validation_loss: float = float("nan")
    best_loss: float = float("inf")
    curve: list[dict[str, float]] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluation_tokens: int = 0
    peak_memory: int = 0
    beyond_weights: int = 0

    def cost(self) -> dict[str, float]:
        """Returns seconds and tokens of the method, without those of evaluating its result."""
        return {
            "seconds": self.seconds - self.evaluation_seconds,
            "tokens": self.tokens - self.evaluation_tokens,
        }

    @property
    def evaluated(self) -> Perplexities:
        """What was evaluated so far."""
        return Perplexities(self.perplexity, self.standard_error, self.windows)

    def add(self, found: Perplexities) -> None:
        """Adds rows that were evaluated, and notes their windows."""
        self.perplexity |= found.values
        self.standard_error |= found.errors
        self.windows = found.windows

    def to_json(self) -> dict[str, Any]:
        """Returns everything but the masks."""
        return {name: value for name, value in asdict(self).items() if name != "masks"}

    @classmethod
    def from_json(cls, values: dict[str, Any], masks: dict[str, Tensor]) -> Self:
        """Makes the record of what ``to_json`` returned and its masks."""
        return cls(masks=masks, **values)


def training_figures(metrics: Mapping[str, float]) -> dict[str, str]:
    """Picks the finite figures of a training step that people watch: texts by their label.

    Args:
        metrics: values by name: ``rollout/loss``, ``rollout/reward``, ``train/baseline``,
            ``validation/best_loss``, and ``.../kept_share/<kind>`` for each kind of unit; others
            are left out.
    """
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    shown = {label: f"{finite[name]:.4f}" for label, name in _WATCHED.items() if name in finite}
    for name, value in finite.items():
        if _KEPT_SHARE in name:
            shown[f"{name.rpartition('/')[2]} kept"] = f"{value:.1%}"
    return shown
