"""What the recommended agent chooses where nothing is typed, and when it leaves that."""

import pytest

from helpers.command import results, train
from pgprune.agents.training.recommended import recommended
from pgprune.commands.train_agent import make_parser
from pgprune.runs.run import Run


def chosen(*words: str) -> dict[str, object]:
    return recommended(make_parser().parse_args(words))


def test_only_the_recommended_agent_chooses():
    assert chosen("--agent=auto")["granularity"] == "values+channels"
    assert chosen() == chosen("--agent=cma-es") == {}


def test_what_is_typed_stays():
    assert "budget" not in chosen("--agent=auto", "--budget=per-kind")
    assert "reward" in chosen("--agent=auto", "--repair=least-squares")


@pytest.mark.parametrize(
    "word",
    [
        *("--granularity=blocks", "--scope=uniform", "--repair=none", "--reward=plain"),
        *("--ray-actors=2", "--population=4"),
    ],
)
def test_without_levels_nothing_is_chosen(word):
    assert chosen("--agent=auto", word) == {}


def test_experts_are_repaired():
    assert chosen("--agent=auto", "--granularity=heads+experts") == {"repair": "least-squares"}
    assert chosen("--agent=auto", "--granularity=experts", "--repair=none") == {}


def test_levels_are_fitted_on_as_many_tokens_whatever_the_length_of_windows():
    assert chosen("--agent=auto")["repair_samples"] == 1024
    assert chosen("--agent=auto", "--sequence-length=2048")["repair_samples"] == 64


def test_a_run_has_what_was_chosen(likely, tmp_path, capsys):
    assert train(*likely, "--agent=auto", f"--output={tmp_path / 'run'}") == 0
    sections = Run.open(str(tmp_path / "run")).sections
    assert sections["pruning"]["granularity"] == "values+channels"
    assert (sections["agent"]["loss"], sections["pruning"]["budget"]) == ("kl", "parameters")
    assert results(tmp_path / "run")["repair"]["asked"] == "levels"
    said = " ".join(capsys.readouterr().out.split())
    assert "agent auto chooses --granularity values+channels --budget parameters" in said
    assert "windows of 16 tokens, fewer than the 8192 asked for" in said
