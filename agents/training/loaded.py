"""What a run needs before its first step: the model, text and environment, loaded and checked."""

import copy
import time
from dataclasses import replace
from typing import Any

from torch import Tensor

from pgprune.agents.training.factory import check_action, check_agent, searches_levels
from pgprune.agents.training.levels import levels_of, start_of
from pgprune.agents.training.replicas import make_env
from pgprune.agents.training.settings import Settings
from pgprune.budget.nested import NestedBudget
from pgprune.data.stream import evaluation_windows
from pgprune.data.token_meter import TokenMeter
from pgprune.envs.judge import Replicas
from pgprune.errors import PruningError
from pgprune.export.export import check_format
from pgprune.metrics import METRICS, Importance
from pgprune.models.load import fingerprint
from pgprune.runs.run import Run
from pgprune.utils.memory import memory_now, read_once


class Loaded:
    """A run's model, text and environment; several runs at different prune rates may share them.

    Args:
        settings: of the run.
        replicas: share the masks of a step, and stop when it has learned; None for none.

    Attributes:
        settings: as given.
        problem: the model, its units, the budget and the text.
        windows: evaluation windows (N, T) by the name of their set.
        metric_windows: calibration token ids of the metric, (N, T).
        repair_windows: of the repair and of levels, (N, T).
        validation: batches of token ids that masks are compared on, (B, T) each.
        env: the environment.
        budget: of the problem, without the limit of a nested one.
        started: when loading began, by ``time.monotonic``.
        memory: bytes in use after loading.

    Raises:
        PruningError: anything that cannot work, before any long work.
    """

    def __init__(self, settings: Settings, replicas: Replicas | None = None) -> None:
        self.started = time.monotonic()
        self.settings = settings
        check_agent(settings)
        self.problem = settings.make_problem()
        check_action(settings, self.problem.units)
        if settings.run.export is not None:
            lm, tokenizer = self.problem.lm, self.problem.tokenizer
            repair, scope = settings.repair.repair, settings.pruning.scope
            check_format(settings.run.export, lm, tokenizer, repair, scope, settings.model)
        read_once(self.problem.lm.model.parameters())
        self.memory = memory_now(self.problem.lm.device)
        self.windows = evaluation_windows(settings.data, self.problem.tokenizer)
        samples, head = settings.init.init_samples, self.problem.stream.head
        self.metric_windows = head(samples)
        self.repair_windows = head(settings.repair.repair_samples or samples, fewer=True)
        self.validation = self.problem.validation.split(8)  # (B, T) each
        self.env = make_env(settings, self.problem)
        if replicas is not None:
            self.env.judge.share(replicas)
        self.budget = self.problem.budget
        self._importance: Importance | None = None
        self._ready = False

    def at(self, settings: Settings, within: Tensor | None = None) -> "Loaded":
        """Returns the same model, text and judge for a run at another prune rate.

        Seconds and tokens are counted from here.

        Args:
            settings: of that run; the model and the text are the same.
            within: the mask (n,) of a model that its model is a part of; None for any.
        """
        other = copy.copy(self)
        other.started, other.settings = time.monotonic(), settings
        other.budget = self.budget.with_rate(settings.pruning.prune_rate)
        budget = other.budget if within is None else NestedBudget(other.budget, within)
        other.problem = replace(self.problem, budget=budget)
        other.problem.lm.meter = TokenMeter()
        other.env = self.env.at(other.problem)
        return other

    def start(self) -> Importance:
        """Returns the importance that the agent starts from; a nested budget does not limit it."""
        if self._importance is not None:
            return self._importance
        problem = replace(self.problem, budget=self.budget)
        return start_of(self.settings, problem, self.metric_windows, self.env.judge)

    def prepare(self, run: Run, shared: bool = False) -> None:
        """Fits or reads levels, and computes the dense model's predictions, unless this is done.

        Args:
            run: keeps the levels in its directory.
            shared: whether runs at other prune rates take the same levels, and the same importance
                where its metric does not depend on the rate.

        Raises:
            PruningError: levels are damaged, activations overflow, or the disk is full.
        """
        if self._ready:
            return
        windows, judge = self.repair_windows, self.env.judge
        judge.levels = levels_of(run, self.settings, self.problem, windows, shared)
        judge.remember(self.validation)
        by_rate = searches_levels(self.settings) or METRICS[self.settings.metric].by_rate
        if shared and not by_rate:
            self._importance = self.start()
        self._ready = True

    def decided(self) -> dict[str, Any]:
        """Returns what was chosen from the settings, for config.yaml."""
        # Not the windows of the metric, whose number differs between agents of one benchmark.
        first_batch = self.problem.stream.head(self.problem.stream.batch_size)
        return {
            "executor": self.problem.lm.executor,
            "learning_rate": self.settings.learning_rate,
            "model_fingerprint": self.problem.model_fingerprint,
            "text_fingerprint": fingerprint(first_batch, self.problem.validation),
            "validation": "held out",
            **({} if self.settings.entry.no_resume is None else {"resumable": False}),
        }

    def check(self, run: Run) -> None:
        """Makes sure that a run to resume was started on this model and this text.

        Raises:
            PruningError: the model or the calibration text is another one, or an earlier version
                trained on what is held out for validation now.
        """
        decided = run.sections.get("decided", {})
        if "validation" not in decided:
            raise PruningError(
                f"the run {run.path} is of an earlier version, which trained on text that is held "
                "out for validation now; start a new run"
            )
        for name in ("model", "text"):
            key = f"{name}_fingerprint"
            if decided.get(key) != self.decided()[key]:
                raise PruningError(
                    f"the run {run.path} was started on another {name} than is there now; put the "
                    f"old {name} back, or start a new run"
                )
