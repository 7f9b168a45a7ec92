"""Measures perplexity and zero-shot accuracy of models and runs, as records.

A record says what was measured and all that it depends on. Those of a run are added to its
``evaluations.jsonl``, all of them to the file of ``--output``.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from pgprune.data.known_texts import ASSETS
from pgprune.data.stream import DataConfig, EvaluationSet, check_sequence_length, evaluation_sets
from pgprune.errors import PruningError
from pgprune.evaluation.zero_shot import PAPER_TASKS, Harness, is_local, load_tasks
from pgprune.losses.windows import model_losses, perplexity_of, window_losses
from pgprune.masking.perplexity import bos_rule, tokenizer_identity
from pgprune.models.load import ModelConfig, fingerprint
from pgprune.runs.any_model import LoadedModel, check_source, load_any, short_name
from pgprune.runs.files import RunFile
from pgprune.runs.finished import FinishedRun
from pgprune.runs.versions import versions
from pgprune.utils.files import check_place, saving
from pgprune.utils.jsonl import Record, add_line
from pgprune.utils.memory import within_memory
from pgprune.utils.options import LARGEST, Config, option, same_option
from pgprune.utils.progress import phase, track


@dataclass(frozen=True)
class EvaluationConfig(Config):
    """Evaluation: on what, and how."""

    evaluation: str | None = option(
        "builtin", "text for perplexity, as --evaluation of pgprune train, or none", metavar="TEXT"
    )
    sequence_length: int = same_option(DataConfig, "sequence_length", 128)
    evaluation_windows: int | None = option(
        None,
        "windows of each text, from its beginning; 0 for all",
        minimum=0,
        unset="as many as the first model needs for a standard error of 1 %",
    )
    batch_size: int = option(8, "windows or answers per call", minimum=1)
    tasks: tuple[str, ...] | None = option(
        None,
        "zero-shot tasks: paper (five), lm-eval's names or local task files",
        unset="paper with --task-data, none without",
        metavar="TASK",
    )
    task_data: str | None = option(
        None,
        "folder of local task files, TASK.jsonl or TASK/*.jsonl",
        unset="text of PGPRUNE_ASSETS, else lm-eval's data sets, downloaded",
        metavar="DIR",
    )
    limit: int | None = option(None, "most items of each task", minimum=1, unset="all")
    device: str = same_option(ModelConfig, "device", "auto")
    dtype: str = same_option(ModelConfig, "dtype", "auto")
    attn_implementation: str = same_option(ModelConfig, "attn_implementation", "sdpa")
    output: str | None = option(
        None,
        "file to append the results to, one JSON object per line",
        unset="none",
        metavar="FILE",
    )
    quiet: bool = option(False, "show no progress, only the results")

    @property
    def task_names(self) -> list[str]:
        """The tasks to do."""
        asked = self.tasks or (("paper",) if self.task_data is not None else ())
        names = (PAPER_TASKS if name == "paper" else [name] for name in asked)
        return list(dict.fromkeys(chain.from_iterable(names)))


class Evaluation:
    """Models and runs to evaluate, with text and tasks, checked; ``records`` does one of them.

    Raises:
        PruningError: anything that cannot work, before any weights are read.
    """

    def __init__(self, sources: Sequence[str], config: EvaluationConfig) -> None:
        self._config = config
        self._names = _names(sources)
        self._sets: dict[str, dict[str, EvaluationSet]] = {}  # by hash of the tokenizer
        self._versions = versions()
        if config.evaluation is None and not config.task_names:
            raise PruningError("there is nothing to evaluate on; give --evaluation or --tasks")
        if config.output is not None:
            _check_output(Path(config.output))
        for source in sources:
            model_config, tokenizer = check_source(source, device=config.device, dtype=config.dtype)
            if config.evaluation is not None:
                try:
                    check_sequence_length(model_config, config.sequence_length)
                except PruningError as error:
                    raise PruningError(f"{self._names[source]}: {error}") from error
            # Texts are read and cut here, before any weights, so that a bad file costs no time.
            self._texts(tokenizer)
        with phase("loading the tasks"):
            names, folder = config.task_names, config.task_data
            self._tasks = load_tasks(names, folder) if names else []
        if self._tasks:
            self._versions["lm_eval"] = version("lm_eval")

    def records(self, source: str) -> Iterator[Record]:
        """Evaluates a source and yields a record for each text and task, once it is stored.

        Raises:
            PruningError: the model cannot be loaded or does not fit into memory, a task cannot be
                scored, or a file cannot be written.
        """
        config = self._config
        loaded = load_any(
            source,
            device=config.device,
            dtype=config.dtype,
            attn_implementation=config.attn_implementation,
        )
        about = {
            "model": source,
            "name": self._names[source],
            "parameters": loaded.parameters,
            "dtype": str(loaded.model.dtype).removeprefix("torch."),
            "device": loaded.model.device.type,
            "bos": bos_rule(loaded.tokenizer),
            "tokenizer": tokenizer_identity(loaded.tokenizer),
            "versions": self._versions,
        }
        # Loading does not count: it is the same for every text and task.
        started = time.monotonic()
        with within_memory("choose a smaller --batch-size"):
            for figures in chain(self._perplexities(loaded), self._accuracies(loaded)):
                now = datetime.now(UTC).isoformat(timespec="seconds")
                record = {**about, **figures, "seconds": time.monotonic() - started, "date": now}
                # Stored at once: an interrupted command loses no measurement.
                self._store(record, loaded.run)
                yield record
                started = time.monotonic()

    def _perplexities(self, loaded: LoadedModel) -> Iterator[Record]:
        config, texts = self._config, self._texts(loaded.tokenizer)
        named = f"{self._names[loaded.source]}: perplexity"
        for name, text in track(list(texts.items()), named, unit="texts"):
            (losses,) = window_losses(
                partial(model_losses, loaded.model),
                text.windows,
                config.batch_size,
                until_sure=not text.decided,
                label=name,
            )
            # The first model decides on the windows of all, so that their perplexities compare.
            text = texts[name] = text.first(len(losses))
            perplexity, error = perplexity_of(losses)
            yield {
                "what": "perplexity",
                "text": name,
                "perplexity": perplexity,
                "standard_error": error,
                # Perplexity of tokens depends on the tokenizer; bits per byte do not:
                # log2(perplexity) bits per token, over the bytes of a token.
                "bits_per_byte": math.log2(perplexity) / text.bytes_per_token,
                "windows": len(text.windows),
                "sequence_length": config.sequence_length,
                "evaluation": config.evaluation,
                "text_fingerprint": fingerprint(text.windows),
            }

    def _accuracies(self, loaded: LoadedModel) -> Iterator[Record]:
        if not self._tasks:
            return
        harness = Harness(loaded.model, loaded.tokenizer, self._config.batch_size)
        label = f"{self._names[loaded.source]}: zero-shot"
        for task in track(self._tasks, label, unit="tasks"):
            score = harness.evaluate(task, self._config.limit)
            verdicts = {metric: score.verdict(metric) for metric in score.accuracy}
            data = (self._config.task_data or ASSETS) if is_local(task) else "lm-eval"
            yield {"what": "zero-shot", **asdict(score), "verdict": verdicts, "data": data}

    def _texts(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, EvaluationSet]:
        """Returns the texts in a tokenizer's tokens, cut once for all models that share it."""
        config = self._config
        if config.evaluation is None:
            return {}
        # The dense model and those pruned from it share a tokenizer, and so the windows.
        key = tokenizer_identity(tokenizer)["hash"]
        if key not in self._sets:
            most = LARGEST[int] if config.evaluation_windows == 0 else config.evaluation_windows
            data = DataConfig(
                evaluation=config.evaluation,
                sequence_length=config.sequence_length,
                evaluation_windows=most,
            )
            self._sets[key] = evaluation_sets(data, tokenizer)
        return self._sets[key]

    def _store(self, record: Record, run: FinishedRun | None) -> None:
        paths = [run.path / RunFile.EVALUATIONS] if run is not None else []
        paths += [Path(self._config.output)] if self._config.output is not None else []
        remedy = " or choose another --output"
        for path in paths:
            with saving(path, remedy):
                path.parent.mkdir(parents=True, exist_ok=True)
            add_line(path, record, remedy)


def _names(sources: Sequence[str]) -> dict[str, str]:
    """Shortens sources, unless two would then have the same name."""
    short = {source: short_name(source) for source in sources}
    # Two runs may end in the same directory name.
    shared = Counter(short.values())
    return {source: source if shared[name] > 1 else name for source, name in short.items()}


def _check_output(path: Path) -> None:
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise PruningError(f"cannot add lines to {path}; choose another --output")
    check_place(path.parent)
