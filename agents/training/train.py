"""Runs training from what is loaded to results, for ``scripts/train_agent.py``.

It evaluates the dense model and the metric's one-shot mask, learns with checkpoints and a few
validations on fixed windows, evaluates, writes and plots.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pgprune.agents.base import Agent
from pgprune.agents.training.factory import WarmStart, make_agent
from pgprune.agents.training.final_mask import final_mask
from pgprune.agents.training.levels import drop_levels
from pgprune.agents.training.loaded import Loaded
from pgprune.agents.training.repaired_reward import REFIT_WINDOWS, RepairedReward
from pgprune.agents.training.results import plot, summarise
from pgprune.agents.training.run_state import Record, training_figures
from pgprune.data.stream import first_windows
from pgprune.data.token_meter import TokenMeter
from pgprune.evaluation.sample import sample_text
from pgprune.metrics import Importance
from pgprune.repair.choice import ChosenRepair
from pgprune.runs.files import RunFile
from pgprune.runs.results import perplexities, with_repair
from pgprune.runs.run import Run
from pgprune.utils.ctrl_c import ctrl_c
from pgprune.utils.memory import peak_memory
from pgprune.utils.progress import note, phase

VALIDATIONS = 10  # in a run
_REFITS = 10  # of the reward in a run
_FOLLOWED = "followed"  # in a checkpoint: the mask whose moments the reward's repairs rest on


class Neighbour(NamedTuple):
    """The run at the next lower prune rate of a sweep, where a run starts.

    Attributes:
        learned: the tensors of its agent.
        mask: its answer, (n,) uint8.
    """

    learned: Mapping[str, Tensor]
    mask: Tensor


class Training:
    """One run; ``run`` starts or resumes it.

    Args:
        loaded: its model and text.
        neighbour: whose answer it starts from; None for the metric or the levels.

    Attributes:
        loaded: as given.
        settings: of the run.
        record: what is known so far.
        interrupted: whether Ctrl-C has ended ``run``.
    """

    def __init__(self, loaded: Loaded, neighbour: Neighbour | None = None) -> None:
        self.settings = loaded.settings
        self.record = Record()
        self.interrupted = False
        self.loaded = loaded
        self._neighbour = neighbour
        self._problem, self._env = loaded.problem, loaded.env
        self._windows = loaded.windows
        self._repaired_reward: RepairedReward | None = None
        self._earlier_seconds = 0.0

    def run(self, run: Run) -> dict[str, Any]:
        """Learns, from the run's checkpoint if it has one, and writes everything.

        Ctrl-C ends the learning after the current step; what was learned is saved and evaluated,
        and the run can be resumed. A second one ends the evaluation too.

        Args:
            run: a new run, or one without results.

        Returns:
            The content of results.json.

        Raises:
            PruningError: the checkpoint is damaged or of another model, the disk is full, or the
                losses are not finite.
        """
        settings = self.settings
        self.loaded.prepare(run)  # tokens that a resumed run has counted before
        checkpoint = run.load_checkpoint()
        if checkpoint is None:
            agent = make_agent(settings, self._env, self._initialise())
            self._start(agent)
            self._reward_repaired(agent)
            if self._repaired_reward is not None:
                self._repaired_reward.follow(agent.mask())
            self._validate(agent)
            self._save(run, agent)
        else:
            # The checkpoint replaces all that an agent takes from importance.
            nothing = Importance(torch.zeros(self._problem.units.n, dtype=torch.float64))
            agent = make_agent(settings, self._env, nothing)
            self._reward_repaired(agent)
            self._restore(agent, *checkpoint)
        with ctrl_c() as interrupted:
            completed = self._learn(run, agent, interrupted)
            results = self._finish(run, agent, completed)
            self.interrupted = interrupted()
        return results

    def _learn(self, run: Run, agent: Agent, interrupted: Callable[[], bool]) -> bool:
        """Learns until the end or Ctrl-C, and saves; returns whether it has come to the end."""
        settings = self.settings
        total, begun, name = settings.run.total_timesteps, agent.timesteps, settings.agent.agent
        last = agent.steps_for(total)
        every = max(1, last // VALIDATIONS)

        def after_step(agent: Agent, figures: dict[str, float]) -> bool:
            if self._repaired_reward is not None:
                self._repaired_reward(agent, figures)
            validated = agent.steps % every == 0 or agent.steps == last
            if validated:
                self._validate(agent)
            loss = self.record.validation_loss if validated else math.nan
            shown = self._log(run, agent, figures | {"validation/loss": loss})
            speed = {"evaluations/s": f"{learning.rate:.3g}"}
            learning.reach(agent.timesteps, shown | speed)
            if agent.steps % settings.run.checkpoint_every == 0 or interrupted():
                self._save(run, agent)
            return not interrupted()

        with phase(name, total, "evaluations", begun) as learning:
            agent.learn(total, after_step)
        self._env.judge.stop()
        self._save(run, agent)
        return agent.steps >= last

    def _initialise(self) -> Importance:
        """Evaluates the dense model and the metric's mask; returns the importance of units."""
        problem = self._problem
        note(f"{problem.units}; executor {problem.lm.executor}")
        importance = self.loaded.start()
        initial = self.record.masks["initial"] = importance.mask(self.loaded.budget)
        rows = {"dense": problem.units.ones(), "initial": initial}
        with self._evaluating():
            sure, known = self.settings.data.until_sure, self.record.evaluated
            found = perplexities(problem.lm, rows, self._windows, until_sure=sure, known=known)
        self.record.add(found)
        self._windows = first_windows(self._windows, found.windows)
        return importance

    def _start(self, agent: Agent) -> None:
        """Lets an agent start from the neighbour, if there is one."""
        if self._neighbour is not None:
            assert isinstance(agent, WarmStart)
            agent.start_from(*self._neighbour)
            self.record.masks["start"] = agent.mask()

    def _reward_repaired(self, agent: Agent) -> None:
        """Makes rewards count refitted weights, if the settings ask for it."""
        settings = self.settings
        if settings.refits:
            steps = agent.steps_for(settings.run.total_timesteps)
            every = settings.agent.reward_refit or max(1, steps // _REFITS)
            windows, damping = self.loaded.metric_windows[:REFIT_WINDOWS], settings.repair.damping
            self._repaired_reward = RepairedReward(self._env, windows, damping, every)

    def _validate(self, agent: Agent) -> None:
        """Evaluates the rounded mask on the validation windows and keeps the best so far.

        The loss is that of rewards (perhaps KL, perhaps repaired), unlike in reported perplexities.
        """
        mask, record = agent.mask(), self.record
        record.validation_loss = self._env.judge.mean(mask, self.loaded.validation)
        if record.validation_loss < record.best_loss or "best" not in record.masks:
            record.best_loss = record.validation_loss
            record.masks["best"] = mask
        self._count()
        point = {"mask_evaluations": agent.timesteps, "loss": record.validation_loss}
        record.curve.append(point | record.cost())

    def _log(self, run: Run, agent: Agent, figures: dict[str, float]) -> dict[str, str]:
        """Logs a step's figures in the run; returns those to show."""
        all_figures = figures | {"validation/best_loss": self.record.best_loss}
        run.log(agent.steps, {"time/timesteps": float(agent.timesteps), **all_figures})
        return training_figures(all_figures)

    def _save(self, run: Run, agent: Agent) -> None:
        self._count()
        tensors, values = agent.state()
        tensors |= {f"mask.{name}": mask for name, mask in self.record.masks.items()}
        if self._repaired_reward is not None:
            assert self._repaired_reward.followed is not None
            tensors[_FOLLOWED] = self._repaired_reward.followed
        run.save_checkpoint(tensors, {"agent": values, "record": self.record.to_json()})

    def _restore(self, agent: Agent, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if self._repaired_reward is not None:
            self._repaired_reward.follow(tensors.pop(_FOLLOWED))
        masks = {name: tensors.pop(name) for name in list(tensors) if name.startswith("mask.")}
        agent.restore(tensors, state["agent"])
        self.record = Record.from_json(
            state["record"], {name.removeprefix("mask."): mask for name, mask in masks.items()}
        )
        self._windows = first_windows(self._windows, self.record.windows)
        self._earlier_seconds = self.record.seconds
        self._problem.lm.meter = TokenMeter(self.record.tokens)
        note(f"resuming after step {agent.steps}")

    def _count(self) -> None:
        """Brings tokens, seconds and memory of the record up to date."""
        record, device = self.record, self._problem.lm.device
        record.tokens = self._problem.lm.meter.tokens
        record.seconds = self._earlier_seconds + time.monotonic() - self.loaded.started
        peak = peak_memory(device)
        record.peak_memory = max(record.peak_memory, peak)
        record.beyond_weights = max(record.beyond_weights, peak - self.loaded.memory)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Counts evaluations of the result apart, which are no cost of the method."""
        started, tokens = time.monotonic(), self._problem.lm.meter.tokens
        yield
        self.record.evaluation_seconds += time.monotonic() - started
        self.record.evaluation_tokens += self._problem.lm.meter.tokens - tokens

    def _final_mask(self, agent: Agent) -> tuple[Tensor, ChosenRepair]:
        """Returns the agent's mask and its repair, or the start's if it is better as they ship.

        Rewards of refitted masks come near a repair and are not the same.
        """
        masks, judge = agent.finalists(), self._env.judge
        start = self.record.masks.get("start", self.record.masks["initial"])
        if self._repaired_reward is not None or judge.levels is not None:
            masks.append(start)
        windows, config = self.loaded.repair_windows, self.settings.repair
        mask, chosen = final_mask(judge, masks, windows, self.loaded.validation, config)
        if mask is start and not torch.equal(start, masks[0]):
            note("after repair, the mask it started from is the better one, and is kept")
        return mask.clone(), chosen

    def _finish(self, run: Run, agent: Agent, completed: bool) -> dict[str, Any]:
        masks = self.record.masks
        mask, chosen = self._final_mask(agent)
        tensors = {**masks, "mask": mask, "probabilities": agent.probabilities}
        masks["masked"], repair = mask, chosen.repair
        lm, settings = self._problem.lm, self.settings
        rows = {name: masks[name] for name in ("masked", "best")}
        with self._evaluating():
            found = perplexities(lm, rows, self._windows)
            self.record.add(with_repair(lm, found, mask, repair, self._windows))
            samples = sample_text(lm, mask, self._problem.tokenizer, self._windows, repair)
        self._count()
        with run.saving():
            chosen.save(run.path / RunFile.REPAIR)
        run.write_mask(tensors | self._problem.basis.tensors(), self._problem.units.describe())
        plot(run, self._problem, self.record)
        results = summarise(
            settings, self._problem, self._windows, self.record, agent, completed, chosen
        )
        results["samples"] = samples
        if completed:
            drop_levels(run)
        run.write_results(results)
        return results
