"""Finetunes a pruned model with LoRA, merges it, and measures perplexity (Appendix A.6).

Everything that can go wrong is checked before weights are read. The result appears by one rename.
While it trains, a checkpoint lies beside the new directory; it goes when that is complete.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig

from pgprune.data.stream import check_sequence_length, evaluation_windows, first_windows
from pgprune.errors import PruningError
from pgprune.finetuning.config import (
    FinetuningConfig,
    data_of,
    evaluation_of,
    output_of,
    refuse_zeros,
)
from pgprune.finetuning.instructions import TrainingDataConfig, training_windows
from pgprune.finetuning.lora import LoraConfig, LoraTrainer, check_peft, listed_family
from pgprune.finetuning.output import RECORD_FILE, add_to_run, write_finetuned
from pgprune.losses.windows import model_losses
from pgprune.masking.perplexity import bos_rule
from pgprune.models.load import fingerprint
from pgprune.runs.any_model import LoadedModel, check_source, load_any, run_at
from pgprune.runs.lock import locked
from pgprune.runs.results import Perplexities, measured
from pgprune.runs.versions import versions
from pgprune.utils.ctrl_c import ctrl_c
from pgprune.utils.files import check_new, read_checkpoint, saving, write_checkpoint
from pgprune.utils.memory import peak_memory
from pgprune.utils.progress import note, phase

_SHOWN_UPDATES = 20  # whose mean loss is shown


class Finetuning:
    """A model to finetune, the data and the evaluation texts, checked; ``run`` does it.

    Raises:
        PruningError: anything that cannot work, before any weights are read.
    """

    def __init__(
        self,
        source: str,
        config: FinetuningConfig,
        data: TrainingDataConfig,
        lora: LoraConfig,
    ) -> None:
        self._started = time.monotonic()
        check_peft()
        run = run_at(source)
        self._source, self._config, self._lora = source, config, lora
        self.output = output_of(source, run, config.output)
        # Beside the new directory, which appears only when it is complete; "." has no name.
        self._checkpoint = self.output.parent / f"{self.output.name}.checkpoint.safetensors"
        self._check_output()
        model_config, self._tokenizer = check_source(
            source, device=config.device, dtype=config.dtype
        )
        listed_family(model_config)  # refuses others
        refuse_zeros(source, model_config)
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
        length = self._length(data.sequence_length, model_config)
        with phase("reading the training data"):
            self._windows = training_windows(
                *(self._data, self._tokenizer, length, data.samples, config.seed, data.train_on)
            )
        self._train_on = data.train_on
        if (count := len(self._windows.ids)) < data.samples:
            note(f"the training data has {count:,} windows, so --samples is {count:,}")

    def run(self) -> dict[str, Any]:
        """Finetunes, merges and writes, from the checkpoint with ``resume``.

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
        lock = self.output.with_name(f".{self.output.name}.lock")
        with saving(self.output):
            lock.parent.mkdir(parents=True, exist_ok=True)
        with locked(lock, self.output):
            yield

    def _run(self) -> dict[str, Any]:
        """Finetunes, merges and writes where no other process does."""
        config = self._config
        loaded = load_any(self._source, device=config.device, dtype=config.dtype)
        parameters = loaded.parameters
        asked = self._asked(loaded)
        # The model is loaded before: its fingerprint is part of what must agree.
        resumed = self._load_checkpoint(asked)
        # A resumed command has measured this already.
        before = (
            Perplexities(**resumed[1]["before"])
            if resumed
            else self._perplexities(loaded, "before", until_sure=self._until_sure)
        )
        self._sets = first_windows(self._sets, before.windows)
        trainer = LoraTrainer(loaded.model, self._windows, self._lora, config.seed)
        earlier_seconds = 0.0
        if resumed:
            trainer.restore(resumed[0], resumed[1])
            earlier_seconds = resumed[1]["seconds"]
            note(f"resuming after update {trainer.step:,} of {trainer.total:,}")

        def seconds() -> float:
            return earlier_seconds + time.monotonic() - self._started

        with (
            phase("finetuning", trainer.total, "updates", trainer.step) as updates,
            ctrl_c() as interrupted,
        ):
            while trainer.step < trainer.total and not interrupted():
                trainer.advance()
                updates.reach(trainer.step, {"loss": f"{_smoothed(trainer.losses):.4f}"})
                if trainer.step % config.checkpoint_every == 0 and trainer.step < trainer.total:
                    tensors, values = trainer.state()
                    record = {
                        **values,
                        "asked": asked,
                        "before": asdict(before),
                        "seconds": seconds(),
                    }
                    self._save_checkpoint(tensors, record)
        memory = peak_memory(loaded.model.device)
        model = trainer.merge()
        assert parameters == loaded.parameters, "merging has changed the number of parameters"
        found = before | self._perplexities(loaded, "after")
        result = {
            **self._facts(loaded, trainer),
            "perplexity": found.values,
            "standard_error": found.errors,
            "seconds": seconds(),
            "peak_memory_bytes": memory,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        with phase(f"writing {self.output}"):
            write_finetuned(self.output, loaded, model, result)
        # After the directory is complete; a failure here loses nothing of it.
        add_to_run(loaded.run, result)
        self._checkpoint.unlink(missing_ok=True)
        return result

    def _facts(self, loaded: LoadedModel, trainer: LoraTrainer) -> dict[str, Any]:
        """Collects what was done, without its outcome."""
        # The means of the first and the last tenth tell whether something was learned.
        few = max(1, trainer.total // 10)
        windows, evaluation = self._windows, self._evaluation
        return {
            "what": "finetuning",
            "model": self._source,
            "name": loaded.name,
            "output": str(self.output),
            "completed": trainer.step == trainer.total,
            "updates": {"done": trainer.step, "planned": trainer.total},
            "loss": {"first": _mean(trainer.losses[:few]), "last": _mean(trainer.losses[-few:])},
            "data": {
                "source": self._data,
                "kind": windows.kind,
                "windows": len(windows.ids),
                "sequence_length": windows.ids.shape[1],
                "train_on": self._train_on,
                "trained_share": float(windows.trained.double().mean()),
            },
            "lora": {**asdict(self._lora), "trained_parameters": trainer.trained_parameters},
            "seed": self._config.seed,
            "parameters": loaded.parameters,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": loaded.model.device.type,
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
        compute = partial(model_losses, loaded.model)
        return measured(compute, [row], self._sets, until_sure=until_sure)

    def _length(self, asked: int, model_config: PretrainedConfig) -> int:
        """Limits the window length to the model's context."""
        limit = getattr(model_config, "max_position_embeddings", None) or asked
        if asked > limit:
            note(f"--sequence-length is {limit:,}, the model's context, and not {asked:,}")
        return min(asked, limit)

    def _check_output(self) -> None:
        if self._config.resume and (self.output / RECORD_FILE).exists():
            with self._locked():  # killed right after the directory had appeared
                self._checkpoint.unlink(missing_ok=True)
            raise PruningError(f"{self.output} is complete, so there is nothing to resume")
        check_new(self.output)
        if self._checkpoint.exists() and not self._config.resume:
            raise PruningError(
                f"{self._checkpoint} is left from a command that was killed; resume it with "
                "the same command and --resume, or delete it to start over"
            )

    def _asked(self, loaded: LoadedModel) -> dict[str, Any]:
        """Collects what a checkpoint must have in common with the command that resumes it."""
        # Weights, windows and texts by their content: paths may change between two commands.
        weights: list[Tensor] = list(loaded.model.parameters())
        return {
            "lora": asdict(self._lora),
            "seed": self._config.seed,
            "model": fingerprint(*weights),
            "data": fingerprint(self._windows.ids, self._windows.trained),
            "evaluation": fingerprint(*self._sets.values()),
        }

    def _save_checkpoint(self, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
        remedy = ", then repeat the same command with --resume"
        with saving(self._checkpoint, remedy):
            self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
            write_checkpoint(self._checkpoint, tensors, record)

    def _load_checkpoint(
        self, asked: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not self._config.resume:
            return None
        if not self._checkpoint.exists():
            note(f"there is no {self._checkpoint} yet, so training starts over")
            return None
        tensors, record = read_checkpoint(self._checkpoint)
        different = [name for name, value in asked.items() if record["asked"].get(name) != value]
        if different:
            raise PruningError(
                f"the checkpoint {self._checkpoint} is of a command with another "
                f"{' and '.join(different)}; repeat that command, or delete the checkpoint"
            )
        return tensors, record


def _smoothed(losses: list[float]) -> float:
    """Averages the last losses: that of one update scatters too much to watch."""
    last = losses[-_SHOWN_UPDATES:]
    return sum(last) / len(last)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
