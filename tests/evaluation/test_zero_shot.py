"""Zero-shot tasks: local files, and accuracies that equal a ranking computed by hand."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from helpers.command import command, json_lines
from helpers.tiny import letters_tokenizer, tiny_model
from pgprune import PruningError
from pgprune.evaluation.evaluate import EvaluationConfig
from pgprune.evaluation.tables import averages
from pgprune.evaluation.task_files import read_items, task_file
from pgprune.evaluation.zero_shot import PAPER_TASKS, Harness, is_local, load_tasks, verdict
from pgprune.runs.any_model import load_any

ANSWERS = {"query": "abc", "choices": ["d", "ee"], "gold": 1}
CONTEXTS = {"context_options": ["ab a", "ab b"], "continuation": "cd", "gold": 0}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ending_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = letters_tokenizer()
    tokenizer.eos_token = "z"
    return tokenizer


@pytest.fixture
def lm_eval() -> None:
    pytest.importorskip("lm_eval", reason="zero-shot tasks need lm-eval")


def by_hand(model, tokenizer, row: dict[str, Any]) -> dict[str, bool]:
    """Whether a row's right answer has the highest log-likelihood, by metric."""
    if "choices" in row:
        query = row["query"]
        if query.startswith("Question:"):
            query = query.rstrip() + "\nAnswer:"
        pairs = [(query, " " + choice) for choice in row["choices"]]
    else:
        pairs = [(context, " " + row["continuation"]) for context in row["context_options"]]
    scores = []
    for context, continuation in pairs:
        ids = torch.tensor(tokenizer(context + continuation)["input_ids"])
        start = len(tokenizer(context)["input_ids"])
        with torch.no_grad():
            logits = model(ids[None]).logits[0, :-1].log_softmax(-1)  # (T-1, V)
        scores.append(float(logits.gather(-1, ids[1:, None])[start - 1 :].sum()))
    best = scores.index(max(scores))
    right = {"acc": best == row["gold"]}
    if "choices" in row:
        each = [score / len(choice) for score, choice in zip(scores, row["choices"], strict=True)]
        right["acc_norm"] = each.index(max(each)) == row["gold"]
    return right


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize("task", PAPER_TASKS)
def test_the_accuracy_is_that_of_a_ranking_by_hand(task, assets, tmp_path):
    """Over the 50 shortest items of each of the paper's five tasks, with a real model."""
    (path,) = (assets / "text" / task).glob("*.jsonl")
    shortest = sorted(path.read_text().splitlines(), key=len)[:50]
    rows = [json.loads(line) for line in shortest]
    write(tmp_path / f"{task}.jsonl", *rows)
    loaded = load_any(str(assets / "models" / "stories260K"), device="cpu")
    right = [by_hand(loaded.model, loaded.tokenizer, row) for row in rows]
    expected = {metric: sum(row[metric] for row in right) / 50 for metric in right[0]}

    found = Harness(loaded.model, loaded.tokenizer).evaluate(*load_tasks([task], str(tmp_path)))
    assert found.accuracy == pytest.approx(expected)
    assert found.items == 50
    assert found.left_out == 0
    assert found.chance == (0.5 if task in ("piqa", "winogrande") else 0.25)
    for metric, share in expected.items():
        assert found.stderr[metric] == pytest.approx(math.sqrt(share * (1 - share) / 49))


@pytest.mark.usefixtures("lm_eval")
def test_all_five_in_one_command(assets, tmp_path, capsys):
    model, kept = assets / "models" / "stories260K", tmp_path / "kept.jsonl"
    options = [f"--task-data={assets / 'text'}", "--limit=2", "--evaluation=none"]
    assert command("evaluate", model, *options, f"--output={kept}", "--device=cpu") == 0
    records = json_lines(kept)
    assert [record["task"] for record in records] == list(PAPER_TASKS)
    shown = capsys.readouterr().out
    for record in records:
        assert record["items"] == 2
        assert set(record["verdict"].values()) == {"at chance"}, "two items show nothing"
        assert f"chance {record['chance']:.1%} (2 items" in shown
        assert f"{record['task']}: acc {record['accuracy']['acc']:.1%}" in shown
    assert "~ at chance: within 2 standard errors of guessing" in shown
    assert "perplexity" not in shown


@pytest.mark.usefixtures("lm_eval")
def test_an_answer_that_fills_the_context_is_left_out_and_counted(tmp_path):
    """The model's context is 64 tokens, and a letter is one."""
    long = {"query": "a", "choices": ["b" * 80, "c"], "gold": 0}
    write(tmp_path / "toy.jsonl", long, ANSWERS, long, ANSWERS, long)
    model, tokenizer = tiny_model("llama"), ending_tokenizer()
    (task,) = load_tasks(["toy"], str(tmp_path))
    harness = Harness(model, tokenizer)
    found = harness.evaluate(task)
    assert (found.items, found.left_out) == (2, 3)
    found = harness.evaluate(task, limit=1)
    assert (found.items, found.left_out) == (1, 1)
    assert found.stderr == {"acc": None, "acc_norm": None}
    write(tmp_path / "other.jsonl", long)
    with pytest.raises(PruningError, match="no item of other fits .* context of 64 tokens"):
        harness.evaluate(*load_tasks(["other"], str(tmp_path)))
    assert tokenizer.pad_token is None, "lm-eval changed a copy"


@pytest.mark.usefixtures("lm_eval")
def test_chance_is_that_of_guessing_among_each_items_answers(tmp_path):
    four = ANSWERS | {"choices": ["d", "e", "f", "g"]}
    write(tmp_path / "toy.jsonl", ANSWERS, four)
    write(tmp_path / "contexts.jsonl", CONTEXTS)
    harness = Harness(tiny_model("llama"), ending_tokenizer())
    mixed, contexts = map(harness.evaluate, load_tasks(["toy", "contexts"], str(tmp_path)))
    assert mixed.chance == (1 / 2 + 1 / 4) / 2
    assert mixed.chance_stderr == pytest.approx(math.sqrt(1 / 4 + 3 / 16) / 2)
    assert contexts.chance == 1 / 2
    assert contexts.accuracy.keys() == {"acc"}


class Manager:
    """lm-eval's, without the time that it takes to read thousands of files."""

    all_subtasks = ["piqa", "gsm8k"]

    def load(self, names: list[str]) -> dict[str, Any]:
        if names == ["piqa"]:
            raise ConnectionError("offline")
        generated = SimpleNamespace(OUTPUT_TYPE="generate_until", aggregation=lambda: ["acc"])
        return {"tasks": {names[0]: generated}}


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("mmlu", "lm-eval has no task 'mmlu'; the paper's are arc_easy"),
        ("piqa", "'piqa' cannot be loaded .offline.; check the network, .* --task-data"),
        ("gsm8k", "'gsm8k' is not of multiple choice"),
    ],
)
def test_tasks_of_lm_eval_that_will_not_do(task, says, monkeypatch):
    monkeypatch.setattr("lm_eval.tasks.TaskManager", Manager)
    monkeypatch.delenv("PGPRUNE_ASSETS", raising=False)
    with pytest.raises(PruningError, match=says):
        load_tasks([task], None)


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.network
def test_tasks_and_data_of_lm_eval(tmp_path, monkeypatch):
    monkeypatch.delenv("PGPRUNE_ASSETS", raising=False)
    kept = tmp_path / "kept.jsonl"
    assert command("evaluate", "builtin", "--tasks=paper", "--limit=2", f"--output={kept}") == 0
    found = [record for record in json_lines(kept) if record["what"] == "zero-shot"]
    assert [record["task"] for record in found] == list(PAPER_TASKS)
    assert [set(record["accuracy"]) for record in found] == [{"acc", "acc_norm"}] * 4 + [{"acc"}]


@pytest.mark.usefixtures("lm_eval")
def test_a_tokenizer_that_lm_eval_cannot_use():
    with pytest.raises(PruningError, match="neither a BOS nor an EOS token"):
        Harness(tiny_model("llama"), letters_tokenizer())


def test_without_lm_eval_there_is_a_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(PruningError, match=r"need lm-eval .*pip install 'pgprune\[eval\]'"):
        load_tasks(["piqa"], None)


def test_both_layouts_of_local_files(tmp_path):
    question = {"query": "Question: why?\n", "choices": ["a", "b"], "gold": 0}
    half = {"query": "\ud83d", "choices": ["\ud83d", "b"], "gold": 0, "source": "ignored"}
    path = write(tmp_path / "toy.jsonl", ANSWERS, question, half, CONTEXTS)
    assert list(read_items(path)) == [
        {"text": "abc", "answers": ["d", "ee"], "gold": 1},
        {"text": "Question: why?\nAnswer:", "answers": ["a", "b"], "gold": 0},
        {"text": "?", "answers": ["?", "b"], "gold": 0},
        {"text": "cd", "contexts": ["ab a", "ab b"], "gold": 0},
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"query": None},
        {"choices": "de"},
        {"choices": ["d"], "gold": 0},
        {"choices": ["d", 2]},
        {"choices": ["d", " "]},
        {"gold": 2},
        {"gold": -1},
        {"gold": "1"},
        {"gold": True},
    ],
)
def test_a_line_that_is_no_item(tmp_path, change):
    path = write(tmp_path / "toy.jsonl", ANSWERS, ANSWERS | change)
    with pytest.raises(PruningError, match="line 2 of .*toy.jsonl' is not an item"):
        list(read_items(path))


def test_lines_that_are_no_objects(tmp_path):
    with pytest.raises(PruningError, match="line 1 .* is not an item"):
        list(read_items(write(tmp_path / "toy.jsonl", [1])))
    (tmp_path / "toy.jsonl").write_text("{")
    with pytest.raises(PruningError, match="line 1 .* is not JSON"):
        list(read_items(tmp_path / "toy.jsonl"))


@pytest.mark.usefixtures("lm_eval")
def test_files_that_are_no_task(tmp_path):
    write(tmp_path / "mixed.jsonl", ANSWERS, CONTEXTS)
    with pytest.raises(PruningError, match="mixes items of two layouts"):
        load_tasks(["mixed"], str(tmp_path))
    write(tmp_path / "empty.jsonl")
    with pytest.raises(PruningError, match="empty.jsonl' is empty"):
        load_tasks(["empty"], str(tmp_path))


def test_where_the_file_of_a_task_is(tmp_path):
    plain = write(tmp_path / "piqa.jsonl", ANSWERS)
    folder = write(tmp_path / "hellaswag" / "validation.jsonl", ANSWERS)
    assert task_file(str(tmp_path), "piqa") == plain
    assert task_file(str(tmp_path), "hellaswag") == folder
    with pytest.raises(PruningError, match="has no file for the task 'winogrande'"):
        task_file(str(tmp_path), "winogrande")
    write(tmp_path / "piqa" / "other.jsonl", ANSWERS)
    with pytest.raises(PruningError, match="has 2 files for the task 'piqa'"):
        task_file(str(tmp_path), "piqa")


def test_which_tasks_are_done():
    def names(**options: Any) -> list[str]:
        return EvaluationConfig(**options).task_names

    assert names() == []
    assert names(task_data="folder") == names(tasks=("paper",)) == list(PAPER_TASKS)
    assert names(tasks=("piqa", "arc_easy", "piqa"), task_data="folder") == ["piqa", "arc_easy"]


@pytest.mark.parametrize(
    ("accuracy", "says"),
    [(0.30, "below"), (0.41, "at"), (0.5, "at"), (0.59, "at"), (0.61, "above")],
)
def test_verdicts(accuracy, says):
    assert verdict(accuracy, 0.5, 0.05) == f"{says} chance"


def test_averages_are_the_papers():
    both = {"accuracy": {"acc": 0.2, "acc_norm": 0.4}, "stderr": {"acc": 0.03, "acc_norm": 0.06}}
    rows = [both, {"accuracy": {"acc": 0.6}, "stderr": {"acc": 0.04}}]
    found = averages(rows)
    assert found["acc"] == pytest.approx((0.4, 0.05 / 2))
    assert found["acc_norm"] == pytest.approx((0.5, math.hypot(0.06, 0.04) / 2))


def test_a_mean_with_a_task_of_one_item_has_no_standard_error():
    rows = [{"accuracy": {"acc": 1.0}, "stderr": {"acc": None}}]
    assert averages(rows)["acc"] == (1.0, None)


@pytest.mark.usefixtures("lm_eval")
def test_tasks_of_the_folder_of_local_texts_are_read_without_network(tmp_path, monkeypatch):
    (tmp_path / "text" / "piqa").mkdir(parents=True)
    write(tmp_path / "text" / "piqa" / "piqa.jsonl", ANSWERS)
    monkeypatch.setenv("PGPRUNE_ASSETS", str(tmp_path))
    monkeypatch.setattr("lm_eval.tasks.TaskManager", None)
    (task,) = load_tasks(["piqa"], None)
    assert is_local(task) and len(task.eval_docs) == 1
