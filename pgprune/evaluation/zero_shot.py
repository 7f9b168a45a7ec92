"""Measures zero-shot accuracy of a model in memory, by lm-eval.

The answer whose tokens have the highest sum of log-probabilities is taken (``acc``), or the highest
sum over the number of its characters (``acc_norm``). lm-eval is loaded when it is needed.
"""

import contextlib
import copy
import io
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pgprune.errors import PruningError, first_line
from pgprune.evaluation.task_files import known_task_file, task_config, task_file
from pgprune.utils.progress import phase

PAPER_TASKS = ("arc_easy", "arc_challenge", "hellaswag", "piqa", "winogrande")
"""The five of the paper's Table 1."""

METRICS = ("acc", "acc_norm")
_MULTIPLE_CHOICE = "multiple_choice"


@dataclass(frozen=True)
class ZeroShot:
    """The score of a model in a task.

    Attributes:
        task: its name.
        items: that were scored.
        left_out: that were not, because an answer alone fills the model's context.
        accuracy: shares of the items, by metric (``acc``, ``acc_norm``).
        stderr: their standard errors, None for a single item.
        chance: the expected accuracy of guessing.
        chance_stderr: the standard error of that, over the same number of items.
    """

    task: str
    items: int
    left_out: int
    accuracy: dict[str, float]
    stderr: dict[str, float | None]
    chance: float
    chance_stderr: float

    def verdict(self, metric: str) -> str:
        """Whether an accuracy is ``above``, ``at`` (2 standard errors) or ``below chance``."""
        return verdict(self.accuracy[metric], self.chance, self.chance_stderr)


def verdict(accuracy: float, chance: float, stderr: float) -> str:
    """``at chance`` within 2 standard errors of guessing, else ``above`` or ``below chance``."""
    # 2 standard errors: about 95 % of guessing models are within.
    if abs(accuracy - chance) <= 2 * stderr:
        return "at chance"
    return "above chance" if accuracy > chance else "below chance"


def load_tasks(names: Sequence[str], folder: str | None) -> list[Any]:
    """Loads tasks and their data.

    Args:
        names: of tasks.
        folder: local files, as ``task_files`` describes them; None for those of the folder
            ``PGPRUNE_ASSETS``, and for lm-eval's own tasks, which it downloads, where that has
            none.

    Raises:
        PruningError: lm-eval is not installed, a task is unknown or not of multiple choice, or its
            data cannot be read.
    """
    _check_installed()
    from lm_eval.api.task import ConfigurableTask

    find = known_task_file if folder is None else partial(task_file, folder)
    files = {name: path for name in names if (path := find(name)) is not None}
    configs = {name: task_config(name, path) for name, path in files.items()}
    with _quietly():
        local = {name: ConfigurableTask(config=config) for name, config in configs.items()}
    downloaded = _download([name for name in names if name not in local])
    return [(local | downloaded)[name] for name in names]


def is_local(task: Any) -> bool:
    """Whether a task of ``load_tasks`` is read from a local file."""
    return task.config.custom_dataset is not None


def _download(names: Sequence[str]) -> dict[str, Any]:
    """Loads lm-eval's own tasks."""
    if not names:
        return {}
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if unknown := [name for name in names if name not in manager.all_subtasks]:
        raise PruningError(
            f"lm-eval has no task {unknown[0]!r}; the paper's are {', '.join(PAPER_TASKS)}, and "
            "`lm_eval ls tasks` lists all"
        )
    return {name: _load(manager, name) for name in names}


class Harness:
    """A model and its tokenizer as lm-eval uses them.

    Raises:
        PruningError: lm-eval is not installed, or cannot use the tokenizer.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 8
    ) -> None:
        _check_installed()
        from lm_eval.models.huggingface import HFLM

        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise PruningError(
                "the tokenizer has neither a BOS nor an EOS token, one of which lm-eval needs; "
                "name one in its tokenizer_config.json"
            )
        model.config.use_cache = False  # nothing is generated
        with _quietly():
            self._lm = HFLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),  # it adds a token for padding
                backend="causal",
                batch_size=batch_size,
            )

    def evaluate(self, task: Any, limit: int | None = None) -> ZeroShot:
        """Does a task. What is longer than the model's context loses its beginning.

        Args:
            task: of ``load_tasks``.
            limit: how many items to score at most, the first ones.

        Raises:
            PruningError: no item fits into the model's context.
        """
        from lm_eval.evaluator import evaluate

        name = task.config.task
        numbers, left_out = self._scored(task, limit)
        if not numbers:
            raise PruningError(
                f"no item of {name} fits into the model's context of {self._lm.max_length} tokens; "
                "leave it out of --tasks"
            )
        docs = task.eval_docs
        answers = [len(task.doc_to_choice(docs[number])) for number in numbers]
        with _quietly(), self._counted(name, sum(answers)):
            results = evaluate(
                self._lm,
                {"tasks": {name: task}},
                samples={name: numbers},
                bootstrap_iters=1,  # the errors of means are not bootstrapped
                log_samples=False,
            )
        scores = results["results"][name]
        metrics = [metric for metric in METRICS if f"{metric},none" in scores]
        # Items may have different numbers of answers. Guessing is right with p = 1 / answers,
        # and the variance of the mean is sum p (1 - p) / items^2.
        guesses = [1 / number for number in answers]
        return ZeroShot(
            name,
            items=len(numbers),
            left_out=left_out,
            accuracy={metric: float(scores[f"{metric},none"]) for metric in metrics},
            stderr={metric: _number(scores[f"{metric}_stderr,none"]) for metric in metrics},
            chance=sum(guesses) / len(guesses),
            chance_stderr=math.sqrt(sum(p * (1 - p) for p in guesses)) / len(guesses),
        )

    @contextlib.contextmanager
    def _counted(self, name: str, answers: int) -> Iterator[None]:
        """Makes the body a phase whose steps are the answers that the model reads."""
        call = type(self._lm)._model_call
        with phase(name, answers, "answers") as done:

            def call_and_count(inputs: Any, *args: Any, **kwargs: Any) -> Any:
                logits = call(self._lm, inputs, *args, **kwargs)
                done.advance(len(inputs))
                return logits

            self._lm._model_call = call_and_count
            try:
                yield
            finally:
                del self._lm._model_call

    def _scored(self, task: Any, limit: int | None) -> tuple[list[int], int]:
        """Returns the numbers of the items to score, and how many are left out between them."""
        numbers: list[int] = []
        left_out = 0
        for number, doc in enumerate(task.eval_docs):
            if len(numbers) == limit:
                break
            # lm-eval cuts a long context; a long answer would lose part of itself.
            if self._fits(task, doc):
                numbers.append(number)
            else:
                left_out += 1
        return numbers, left_out

    def _fits(self, task: Any, doc: Any) -> bool:
        """Whether every answer of an item is shorter than the model's context."""
        answers = [task.doc_to_target(doc)] if task.multiple_input else task.doc_to_choice(doc)
        room = self._lm.max_length - 2  # a space before it may be a token, and so may its parts
        return all(
            len(answer.encode()) < room  # no token is shorter than a byte
            or len(self._lm.tok_encode(answer, add_special_tokens=False)) < room
            for answer in answers
        )


def _load(manager: Any, name: str) -> Any:
    try:
        task = manager.load([name])["tasks"][name]
    except Exception as error:  # data sets and the network raise everything
        raise PruningError(
            f"the task {name!r} cannot be loaded ({first_line(error)}); check the network, or give "
            "local files by --task-data or PGPRUNE_ASSETS"
        ) from error
    if task.OUTPUT_TYPE != _MULTIPLE_CHOICE or "acc" not in task.aggregation():
        raise PruningError(
            f"the task {name!r} is not of multiple choice with an accuracy; leave it out of --tasks"
        )
    return task


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps lm-eval's warnings and progress bars off the screen."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def _check_installed() -> None:
    try:
        import lm_eval.models.huggingface  # noqa: F401
    except ImportError as error:
        raise PruningError(
            f"zero-shot tasks need lm-eval ({first_line(error)}); run `pip install 'pgprune[eval]'`"
        ) from error


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float | int) else None
