"""A new agent is one file and one line: an agent that is defined here works in every command."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from helpers.command import results, train
from pgprune.agents.base import Agent
from pgprune.agents.registry import AGENTS, Entry
from pgprune.errors import PruningError
from pgprune.experiments.cells import Cell
from pgprune.experiments.hyperparameters import read_hyperparameters
from pgprune.metrics import Importance
from pgprune.utils.options import Config, option


@dataclass(frozen=True)
class LuckyConfig(Config):
    """Lucky: tries random masks."""

    lucky_masks: int = option(4, "lucky: masks of a step", minimum=2)

    @property
    def masks(self) -> int:
        return self.lucky_masks


class Lucky(Agent):
    """Draws masks that know nothing, and answers with the last step's best."""

    saved_tensors = ("best",)

    def __init__(self, env: Any, config: LuckyConfig, importance: Importance, seed: int) -> None:
        super().__init__(env, config.masks, seed)
        self.best = importance.mask(env.budget)

    def mask(self) -> Tensor:
        return self.best.clone()

    def draw(self) -> Tensor:
        return self.budget.round(torch.rand(self.budget.units.n, generator=self._generator))

    def _learn_step(self, total_steps: int, total_timesteps: int) -> dict[str, float]:
        masks = torch.stack([self.draw() for _ in range(self.env.num_envs)])  # (K, n)
        losses = self._losses(masks)  # (K,)
        self.best = masks[losses.argmin()].clone()
        self.steps += 1
        return self._figures(losses, {})


@pytest.fixture(autouse=True)
def lucky(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(AGENTS, "lucky-draw", Entry(Lucky, LuckyConfig))
    yield


def test_it_trains_with_options_of_its_own(options, tmp_path):
    run = tmp_path / "run"
    few = [*options, "--agent=lucky-draw", "--lucky-masks=8", "--total-timesteps=2"]
    assert train(*few, f"--output={run}") == 0
    assert results(run)["agent"] == "lucky-draw"
    assert len((run / "progress.csv").read_text().splitlines()) - 1 == 2 * 1024 // (8 * 32)
    assert yaml.safe_load((run / "config.yaml").read_text())["lucky_draw"] == {"lucky_masks": 8}
    assert train(f"--resume={run}") == 0


def test_help_and_mistakes_show_it(options, capsys):
    with pytest.raises(SystemExit):
        train("--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "td3, lucky-draw" in shown
    assert "Lucky: tries random masks: --lucky-masks N" in shown
    with pytest.raises(PruningError, match="lucky-masks.* at least 2"):
        train(*options, "--lucky-masks=1")


def test_experiments_know_it(tmp_path):
    (tmp_path / "lucky-draw.yaml").write_text("default: {lucky-masks: 6}\n")
    found = read_hyperparameters("lucky-draw", tmp_path)
    assert found.of(Cell("lucky-draw", "builtin", 0.5, 0)) == {"lucky_masks": 6}
