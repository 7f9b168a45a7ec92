"""The command pgprune make as a user runs it: all stages, one after the other, and resumed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers.command import Crash, command, refused, results
from pgprune.making import make as making
from pgprune.making.card import write_cards
from pgprune.making.state import State
from pgprune.making.table import table
from pgprune.runs.any_model import load_any


def state(path: Path) -> dict:
    return json.loads((path / "make.json").read_text())


def test_every_stage_has_its_directory_and_a_row(made, capsys):
    assert {path.name for path in made.iterdir()} == {
        *("search", "recovered", "hf", "make.json", "README.md")
    }
    rows = table(made, State.open(made))
    names = [row.name for row in rows]
    assert names[0] == "dense model" and names[-2:] == ["distillation", "as written to hf"]
    found = results(made / "search")
    assert rows[0].perplexity == found["perplexity"]["dense"]
    assert {row.parameters for row in rows[-3:]} == {found["parameters"]["pruned"]}
    assert rows[-1].perplexity == pytest.approx(rows[-2].perplexity)
    page = (made / "README.md").read_text()
    assert all(f"| {name} |" in page for name in names) and "/tmp" not in page
    assert page.count("| distillation |") == 1
    card = (made / "hf" / "README.md").read_text()
    assert card.count("## How this model was made") == 1 and "| distillation |" in card


def test_what_was_made_is_the_recovered_model(made):
    left, right = (load_any(str(made / name), device="cpu").model for name in ("hf", "recovered"))
    for own, other in zip(left.parameters(), right.parameters(), strict=True):
        assert torch.equal(own, other)
    AutoModelForCausalLM.from_pretrained(made / "hf", trust_remote_code=True)
    assert command("check", made / "hf", made / "search", "--quiet") == 0


def test_all_is_done_once(made, monkeypatch, capsys):
    before = state(made)
    for name in ("Loaded", "recover", "export"):
        monkeypatch.setattr(making, name, None)  # nothing of it is called
    assert command("make", f"--resume={made}") == 0
    printed = capsys.readouterr().out
    assert "search is done" in printed and "as written to hf" in printed
    assert state(made) == before


def without(made: Path, to: Path, *stages: str, minutes: float | None = 0.001) -> Path:
    """A copy in which some stages are not done, and the evaluation is not."""
    copy = shutil.copytree(made, to)
    for name in stages:
        shutil.rmtree(copy / name)
    content = state(copy)
    del content["stages"]["evaluation"]
    content["settings"]["make"]["recovery_minutes"] = minutes
    (copy / "make.json").write_text(json.dumps(content))
    return copy


def test_without_recovery_the_search_is_exported(made, tmp_path):
    output = without(made, tmp_path / "made", "recovered", "hf", minutes=None)
    assert command("make", f"--resume={output}", "--quiet") == 0
    assert {path.name for path in output.iterdir()} == {"search", "hf", "make.json", "README.md"}
    rows = table(output, State.open(output))
    assert rows[-1].perplexity == pytest.approx(rows[-2].perplexity)


@pytest.mark.parametrize(
    ("stage", "left"), [("recover", ("recovered", "hf")), ("_take", ("hf",)), ("measured", ())]
)
def test_an_interrupted_stage_is_done_again(stage, left, made, monkeypatch, tmp_path, capsys):
    copy = without(made, tmp_path / "made", *left)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(making, stage, stop)
        assert command("make", f"--resume={copy}") == 130
    assert re.search(rf"resume with .*make.py --resume {copy}$", capsys.readouterr().out.strip())
    assert command("make", f"--resume={copy}") == 0
    for own, other in zip(*(table(path, State.open(path)) for path in (copy, made)), strict=True):
        assert own.name == other.name and own.perplexity == other.perplexity


def test_a_killed_search_continues_from_its_checkpoint(made, quick, tmp_path, monkeypatch):
    output = tmp_path / "made"

    def crash(*_):
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(making.Training, "_finish", crash)
        with pytest.raises(Crash):
            command("make", *quick, f"--output={output}")
    assert (output / "search" / "checkpoint").is_dir()
    assert command("make", f"--resume={output}", "--quiet") == 0
    for name in ("perplexity", "tokens"):
        assert results(output / "search")[name] == results(made / "search")[name]
    assert (output / "hf").is_dir()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(quick, tmp_path, capsys):
    output = tmp_path / "made"
    words = (*quick, "--recovery-minutes=3", f"--output={output}", "--dry-run", "--quiet")
    assert command("make", *words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for word in ("search", "distillation from the dense model", "export hf", "evaluation"):
        assert word in printed
    assert list(tmp_path.iterdir()) == []


def test_cards_are_written_again_without_a_second_table(made):
    before = (made / "hf" / "README.md").read_text()
    write_cards(made, State.open(made))
    assert (made / "hf" / "README.md").read_text() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give MODEL, or --resume DIR"),
        (["{model}"], "give --output DIR"),
        (["./nowhere", "--output={new}"], "nowhere"),
        (["{model}", "--output={made}"], "or resume with"),
        (["{model}", "--output={new}", "--prune-rate=1.5"], "1.5"),
        (["{model}", "--output={new}", "--formats", "hf", "hf"], "name one twice"),
        (["{model}", "--output={new}", "--formats=onnx"], "onnx"),
        (["{model}", "--output={new}", "--target=memory<=6"], "needs a unit"),
        (
            ["{model}", "--output={new}", "--sequence-length=16", "--target=parameters<=9"],
            "cannot be met",
        ),
        (["{model}", "--output={new}", "--recovery-minutes=-1"], "-1"),
        (["--resume={made}", "--prune-rate=0.5"], "--prune-rate has no effect"),
        (["{model}", "--resume={made}"], "has no effect"),
        (["--resume={new}"], "it has no make.json"),
    ],
)
def test_mistakes_are_said_in_a_sentence(words, said, made, likely_arguments, tmp_path, capsys):
    places = {"model": likely_arguments["model"], "made": made, "new": tmp_path / "new"}
    refused("make", *(word.format(**places) for word in words))
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and said in last, last


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": {}}', '{"settings": {"make": 3}}'])
def test_a_damaged_state_is_refused(text, tmp_path, capsys):
    (tmp_path / "make.json").write_text(text)
    refused("make", f"--resume={tmp_path}")
    assert "make.json is damaged" in capsys.readouterr().err
