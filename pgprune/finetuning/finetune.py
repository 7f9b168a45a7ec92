"""Finetunes a pruned model on text or by its dense model, and measures perplexity (Appendix A.6).

Everything that can go wrong is checked before weights are read. The result appears by one rename.
While it trains, checkpoints lie beside the new directory; they go when that is complete.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pgprune.data.stream import check_sequence_length, evaluation_windows, first_windows
from pgprune.errors import PruningError
from pgprune.finetuning.batches import open_data
from pgprune.finetuning.checkpoint import Checkpoint
from pgprune.finetuning.config import data_of, evaluation_of, length_of, output_of, refuse_zeros
from pgprune.finetuning.output import RECORD_FILE, add_to_run, write_finetuned
from pgprune.finetuning.parts import listed_family
from pgprune.finetuning.processes import agreed, check_alike, join, shared
from pgprune.finetuning.settings import FinetuningSettings
from pgprune.finetuning.stages import Stage, Work, fit_blocks, train
from pgprune.finetuning.teacher import Teacher, check_memory
from pgprune.finetuning.validation import other_text, second_domain
from pgprune.losses.windows import model_losses
from pgprune.masking.perplexity import bos_rule
from pgprune.models.load import ModelConfig, choose_dtype, fingerprint
from pgprune.runs.any_model import LoadedModel, check_source, load_any, run_at
from pgprune.runs.finished import FinishedRun
from pgprune.runs.lock import locked
from pgprune.runs.results import Perplexities, measured
from pgprune.runs.versions import versions
from pgprune.utils.ctrl_c import ctrl_c
from pgprune.utils.devices import choose_device
from pgprune.utils.files import check_new, saving
from pgprune.utils.memory import peak_memory
from pgprune.utils.process_ids import rank, world_size
from pgprune.utils.progress import phase


class Finetuning:
    """A model to finetune, the data and the evaluation texts, checked; ``run`` does it.

    Args:
        source: a finished run, or a model.
        settings: what is done.

    Attributes:
        output: the directory to come.

    Raises:
        PruningError: anything that cannot work, before any weights are read.
    """

    def __init__(self, source: str, settings: FinetuningSettings) -> None:
        self._started = time.monotonic()
        self._source, self._settings = source, settings
        config, data = settings.finetuning, settings.data
        join(config.device)
        run = run_at(source)
        self.output = output_of(source, run, config.output)
        self._checkpoint = Checkpoint(self.output, "", config.resume)
        self._local_checkpoint = Checkpoint(self.output, "local.", config.resume)
        self._check_output()
        model_config, self._tokenizer = check_source(
            source, device=config.device, dtype=config.dtype
        )
        listed_family(model_config)  # refuses others
        refuse_zeros(source, model_config)
        self._teacher = self._check_teacher(run, model_config) if settings.teaches else None
        self._data = data.data or data_of(source, run, model_config)
        self._evaluation = evaluation_of(config, run)
        check_sequence_length(model_config, self._evaluation.sequence_length)
        # The run's own windows, unless something else is asked for.
        asked = (config.evaluation, config.evaluation_length, config.evaluation_windows)
        own = run is not None and all(value is None for value in asked)
        self._until_sure = not own and self._evaluation.until_sure
        if run is not None and own:
            self._sets = run.evaluation_windows(self._tokenizer)
        else:
            self._sets = evaluation_windows(self._evaluation, self._tokenizer)
        with phase("reading the training data"):
            self._open_data(length_of(data.sequence_length, model_config))

    def run(self) -> dict[str, Any]:
        """Finetunes and writes, from the checkpoints with ``resume``.

        Ctrl-C ends the training after the update at hand; what was learned is merged, evaluated
        and written all the same.

        Returns:
            The record, which is also in the new directory and added to the run's evaluations.

        Raises:
            PruningError: the model cannot be loaded, the memory or the disk does not suffice, the
                checkpoint is damaged or of another command, the loss is not finite, or another
                process writes to the same place.
        """
        with self._locked():
            return self._run()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if rank() > 0:  # the main process holds it
            yield
            return
        lock = self.output.with_name(f".{self.output.name}.lock")
        with saving(self.output):
            lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, self.output):
            yield

    def _run(self) -> dict[str, Any]:
        """Finetunes and writes where no other process does."""
        settings, config = self._settings, self._settings.finetuning
        loaded = load_any(
            self._source,
            device=config.device,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
        )
        parameters = loaded.parameters
        teacher = None if self._teacher is None else self._teacher.load()
        layers = self._layers(loaded)
        # The models are loaded before: their fingerprints are part of what must agree.
        asked = self._asked(loaded, teacher)
        self._checkpoint.note_absence(self._local_checkpoint)
        resumed = self._checkpoint.load(asked)
        resumed_local = self._local_checkpoint.load(asked)
        reached = {"checkpoint": [each and each[1] for each in (resumed, resumed_local)]}
        check_alike(asked | reached)
        earlier = (resumed or resumed_local or ({}, {}))[1]
        before = earlier.get("seconds", 0.0)
        # A resumed command has measured this already.
        found = (
            Perplexities(**earlier["found"])
            if earlier
            else self._perplexities(loaded, "before", until_sure=self._until_sure)
        )
        self._sets = first_windows(self._sets, found.windows)

        def seconds() -> float:
            return float(before) + time.monotonic() - self._started

        def work() -> Work:
            record = {"asked": asked, "found": asdict(found)}
            models = (settings, loaded.model, teacher, layers)
            return Work(*models, self._batches, self._held, record, seconds)

        stages = list[Stage]()
        with ctrl_c() as pressed:
            interrupted = agreed(pressed)
            if settings.local.local:
                stages.append(
                    fit_blocks(work(), self._local_checkpoint, resumed_local, interrupted)
                )
                if settings.trains and "local" not in found.values:
                    found = found | self._perplexities(loaded, "local")
            if settings.trains:
                stages.append(train(work(), self._checkpoint, resumed, interrupted))
        memory = peak_memory(loaded.model.device)
        assert parameters == loaded.parameters, "finetuning has changed the number of parameters"
        found = found | self._perplexities(loaded, "after")
        result = {
            **self._facts(loaded, stages),
            "perplexity": found.values,
            "standard_error": found.errors,
            "seconds": seconds(),
            "peak_memory_bytes": memory,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        if rank() > 0:
            return result
        with phase(f"writing {self.output}"):
            write_finetuned(self.output, loaded, loaded.model, result)
        # After the directory is complete; a failure here loses nothing of it.
        add_to_run(loaded.run, result)
        self._remove_checkpoints()
        return result

    def _facts(self, loaded: LoadedModel, stages: list[Stage]) -> dict[str, Any]:
        """Collects what was done, without its outcome."""
        evaluation, teacher = self._evaluation, self._teacher
        done: dict[str, Any] = {}
        for stage in stages:
            done |= stage.facts
        return {
            "what": "finetuning",
            "model": self._source,
            "name": loaded.name,
            "output": str(self.output),
            "completed": all(stage.completed for stage in stages),
            "stages": [
                {"stage": stage.name, "tokens": stage.tokens, "seconds": stage.seconds}
                for stage in stages
            ],
            "data": {
                "source": self._data,
                **self._batches.facts,
                "train_on": self._settings.data.train_on,
            },
            **({} if teacher is None else {"teacher": teacher.name}),
            **({"validation": {"texts": self._held_of}} if self._held else {}),
            **done,
            "seed": self._settings.finetuning.seed,
            "parameters": loaded.parameters,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": loaded.model.device.type,
            "processes": world_size(),
            "evaluation": {
                "source": evaluation.evaluation,
                "sequence_length": evaluation.sequence_length,
                "windows": {name: len(ids) for name, ids in self._sets.items()},
                "bos": bos_rule(self._tokenizer),
            },
        }

    def _perplexities(
        self, loaded: LoadedModel, row: str, until_sure: bool = False
    ) -> Perplexities:
        compute = shared(partial(model_losses, loaded.model))
        return measured(compute, [row], self._sets, until_sure=until_sure)

    def _check_teacher(self, run: FinishedRun | None, config: PretrainedConfig) -> Teacher:
        """Finds the teacher, and checks that both models fit into the memory."""
        settings, asked = self._settings, self._settings.finetuning
        teacher = Teacher(
            *(self._source, run, settings.distillation.teacher, config, self._tokenizer),
            device=asked.device,
            dtype=asked.dtype,
            attn_implementation=asked.attn_implementation,
        )
        device = choose_device(asked.device)
        dtype = choose_dtype(ModelConfig(teacher.name, asked.device, asked.dtype), device)
        trained = settings.train if settings.trains else "lora"
        check_memory(self._source, run, teacher, trained=trained, device=device, dtype=dtype)
        return teacher

    def _layers(self, loaded: LoadedModel) -> tuple[int, ...]:
        """Returns the dense layers of the model's, where states are compared."""
        settings, teacher = self._settings, self._teacher
        hidden = settings.distillation.distill and settings.distillation.hidden_loss_weight
        if teacher is None or not (settings.local.local or hidden):
            return ()
        remedies = ["leave out --local"] if settings.local.local else []
        remedies += ["choose --hidden-loss-weight 0"] if hidden else []
        return teacher.layers_of(loaded.model, " and ".join(remedies))

    def _open_data(self, length: int) -> None:
        """Opens what is trained on, and what is held out of it."""
        settings, tokenizer = self._settings, self._tokenizer
        validation, source = settings.validation, self._data
        self._batches, held = open_data(
            *(source, tokenizer, length, settings.data),
            batch_size=settings.training.batch_size,
            epochs=settings.training.epochs,
            seed=settings.finetuning.seed,
            hold_out=validation.validation_windows if settings.validates else 0,
        )
        self._held, self._held_of = dict[str, Tensor](), dict[str, str]()
        if settings.validates:
            other = validation.validation or other_text(source)
            windows = second_domain(other, tokenizer, length, validation.validation_windows)
            self._held = {"training text": held, "other text": windows}
            self._held_of = dict(zip(self._held, (source, other), strict=True))

    def _check_output(self) -> None:
        if self._settings.finetuning.resume and (self.output / RECORD_FILE).exists():
            with self._locked():  # killed right after the directory had appeared
                self._remove_checkpoints()
            raise PruningError(f"{self.output} is complete, so there is nothing to resume")
        check_new(self.output)
        for checkpoint in (self._checkpoint, self._local_checkpoint):
            checkpoint.refuse_left()

    def _remove_checkpoints(self) -> None:
        self._checkpoint.remove()
        self._local_checkpoint.remove()

    def _asked(self, loaded: LoadedModel, teacher: PreTrainedModel | None) -> dict[str, Any]:
        """Collects what a checkpoint must have in common with the command that resumes it."""
        settings = self._settings
        names = ("training", "lora", "distillation", "local", "validation")
        # Weights, windows and texts by their content: paths may change between two commands.
        return {name: asdict(getattr(settings, name)) for name in names} | {
            "seed": settings.finetuning.seed,
            "model": fingerprint(*loaded.model.parameters()),
            "teacher": None if teacher is None else fingerprint(*teacher.parameters()),
            "data": self._batches.fingerprint(),
            "updates": self._batches.total,
            "held-out windows": fingerprint(*self._held.values()),
            "evaluation": fingerprint(*self._sets.values()),
        }
