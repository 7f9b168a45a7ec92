"""One search for several sizes: ``train_agent.py --prune-rates`` as a user runs it."""

import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from helpers.command import Crash, assert_same_run, command, train
from pgprune.agents.auto import Auto
from pgprune.agents.level_search import LevelSearch
from pgprune.agents.reinforce import Reinforce
from pgprune.agents.training import levels, sweep_results
from pgprune.agents.training.config import SweepConfig, TrainingRunConfig
from pgprune.agents.training.rates import evaluations_of
from pgprune.agents.training.settings import Settings
from pgprune.errors import PruningError
from pgprune.runs.finished import FinishedRun
from pgprune.runs.run import Run
from pgprune.runs.sweep import Sweep

RATES = (0.3, 0.5)
TIMES = sweep_results.times
AGENTS = {"reinforce": Reinforce, "plain": Auto, "levels": LevelSearch}
WORDS = {
    "reinforce": ["--agent=reinforce", "--checkpoint-every=8"],  # of 32 steps
    "plain": ["--agent=auto", "--reward=plain"],
    "levels": ["--agent=auto", "--repair-samples=16"],
}
FEW = ["--evaluation-windows=2", "--init-samples=4", "--checkpoint-every=1", "--total-timesteps=1"]

Words = Callable[[str], list[str]]
Whole = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def untimed() -> Iterator[None]:
    """Models are timed only where a test asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_results, "times", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def words(options: list[str], likely: list[str]) -> Words:
    """Of a sweep over two rates with a few steps each, by the kind of agent."""

    def of(kind: str) -> list[str]:
        shared = likely if kind == "levels" else options
        shared = [word for word in shared if not word.startswith("--prune-rate")]
        return [*shared, *FEW, *WORDS[kind], "--prune-rates", *map(str, RATES)]

    return of


@pytest.fixture(scope="module")
def whole(words: Words, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A sweep that nothing happened to, by the kind of agent."""

    @cache
    def of(kind: str) -> Path:
        path = tmp_path_factory.mktemp("sweeps") / kind
        assert train(*words(kind), f"--output={path}") == 0
        return path

    return of


def assert_same_sweep(one: Path, other: Path) -> None:
    for rate in RATES:
        assert_same_run(one / str(rate), other / str(rate))
    assert counted(one) == counted(other)
    assert not (other / "levels").exists()


def counted(sweep: Path) -> dict[str, Any]:
    """What sweep.json says, without what depends on the clock."""
    found = Sweep.open(sweep).results
    for part in (found["shared"], found["total"], *found["runs"].values()):
        del part["seconds"]
    return found


@pytest.mark.parametrize("kind", AGENTS)
def test_each_rate_is_a_run_like_any_other(kind, whole):
    found, runs = counted(whole(kind)), [FinishedRun.open(whole(kind) / str(r)) for r in RATES]
    assert found["completed"]
    for run, rate in zip(runs, RATES, strict=True):
        assert run.finished
        assert run.results["prune_rate"]["requested"] == rate
        assert run.load().pruned().num_parameters() == run.results["parameters"]["pruned"]
        candidate = found["runs"][str(rate)]
        cache = candidate["memory_bytes"] - 8 * candidate["parameters"]  # weights are float64
        assert 0 <= cache <= found["dense"]["memory_bytes"] - 8 * found["dense"]["parameters"]
    tokens = [run.results["tokens"] for run in runs]
    assert found["total"]["tokens"] == found["shared"]["tokens"] + sum(tokens)
    assert found["shared"]["perplexity"]["dense"] == runs[1].results["perplexity"]["dense"]


@pytest.mark.parametrize(
    ("kind", "moment"),
    [
        ("levels", "in the shared work"),
        ("levels", "in a step"),
        ("plain", "before a checkpoint"),
        ("reinforce", "before a checkpoint"),
    ],
)
def test_a_killed_sweep_goes_on_bit_for_bit(kind, moment, words, whole, tmp_path, monkeypatch):
    agent, cut = AGENTS[kind], tmp_path / "cut"
    step, save = agent._learn_step, Run.save_checkpoint

    def crash(*_: object) -> None:
        raise Crash

    def step_or_crash(self: Any, *arguments: int) -> dict[str, float]:
        if self.budget.prune_rate == RATES[1] and self.steps == 2:
            raise Crash
        return step(self, *arguments)

    def save_or_crash(self: Run, *arguments: Any) -> None:
        if self.path.name == str(RATES[1]):
            raise Crash
        save(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(Crash):
        if moment == "in the shared work":
            patched.setattr(Sweep, "write", crash)
        elif moment == "in a step":
            patched.setattr(agent, "_learn_step", step_or_crash)
        else:
            patched.setattr(Run, "save_checkpoint", save_or_crash)
        train(*words(kind), f"--output={cut}")
    assert (cut / str(RATES[1])).exists() == (moment != "in the shared work")
    assert train(f"--resume={cut}") == 0
    assert_same_sweep(whole(kind), cut)


def test_ctrl_c_saves_and_says_how_to_go_on(words, whole, tmp_path, monkeypatch, capsys):
    cut, step = tmp_path / "cut", Reinforce._learn_step

    def press(self: Any, *arguments: int) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Reinforce, "_learn_step", press)
        assert train(*words("reinforce"), f"--output={cut}") == 130
    assert f"--resume {cut}" in capsys.readouterr().out
    assert not (cut / str(RATES[1])).exists()
    with pytest.raises(PruningError, match=f"part of the sweep {cut}; resume that"):
        train(f"--resume={cut / str(RATES[0])}")
    assert train(f"--resume={cut}") == 0
    assert_same_sweep(whole("reinforce"), cut)


@pytest.mark.parametrize("kind", AGENTS)
def test_nested_models_are_parts_of_each_other(kind, words, tmp_path):
    assert train(*words(kind), "--nested", f"--output={tmp_path / 'nested'}") == 0
    large, small = (FinishedRun.open(tmp_path / "nested" / str(r)).learned_mask() for r in RATES)
    assert bool((small.mask <= large.mask).all())
    assert small.mask.sum() < large.mask.sum()


def test_levels_are_fitted_once(words, tmp_path, monkeypatch):
    fitted = []

    def fit(*arguments: Any) -> Any:
        fitted.append(arguments)
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        patched.setattr(levels, "fit_levels", fit)
        train(*words("levels"), f"--output={tmp_path / 'sweep'}")
    (_, _, kept, folder, *_) = fitted[0]
    assert folder == tmp_path / "sweep" / "levels"
    assert all(counts[0] > 0 and counts[-1] == 0 for counts in kept)


def test_a_finished_sweep_is_not_touched(whole, capsys):
    path = whole("reinforce")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    assert train(f"--resume={path}") == 0
    assert "is finished" in capsys.readouterr().out
    assert before == {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}


def test_a_damaged_or_lost_summary_is_made_again(whole, tmp_path):
    copy = shutil.copytree(whole("reinforce"), tmp_path / "sweep")
    (copy / "sweep.json").write_text("{")
    with pytest.raises(PruningError, match="delete it and --resume"):
        train(f"--resume={copy}")
    (copy / "sweep.json").unlink()
    assert train(f"--resume={copy}") == 0
    assert counted(copy)["runs"] == counted(whole("reinforce"))["runs"]


def test_the_table_has_the_dense_model_all_candidates_and_the_cost(whole, capsys):
    text = (whole("reinforce") / "candidates.md").read_text()
    found = counted(whole("reinforce"))
    for model in (found["dense"], *found["runs"].values()):
        assert f"{model['parameters']:,}" in text
    assert f"{found['total']['tokens']:,} tokens" in text
    assert (whole("reinforce") / "plots" / "candidates.png").exists()


def test_models_are_timed_beside_the_dense_one(whole):
    sweep = Sweep.open(whole("reinforce"))
    shares = TIMES(sweep, 10**6)
    assert shares.keys() == {"0.3", "0.5"}
    assert all(share > 0 for share in shares.values())
    assert TIMES(sweep, 10**12) == {}, "too large to be in memory at once"


def test_exports_and_checks_take_a_sweep(whole, tmp_path, capsys):
    path = whole("reinforce")
    assert command("export", path, "--at=0.3", f"--output={tmp_path / 'hf'}") is None
    assert (tmp_path / "hf" / "model.safetensors").exists()
    assert command("check", path) == 0
    assert "0.5/run" in capsys.readouterr().out
    (path / "sweep.yaml").write_text((path / "sweep.yaml").read_text() + "\n")
    assert command("check", path) == 1


@pytest.mark.parametrize(
    ("name", "more", "says"),
    [
        ("export", ["--at=0.4"], "no run at 0.4; those that are there: 0.3, 0.5"),
        ("export", [], "runs at several rates .0.3, 0.5."),
        ("evaluate", [], "runs at several rates .0.3, 0.5."),
        ("finetune", [], "runs at several rates .0.3, 0.5."),
    ],
)
def test_a_sweep_is_no_run(name, more, says, whole):
    with pytest.raises(PruningError, match=says):
        command(name, whole("reinforce"), *more)


def test_a_run_has_no_rates(undisturbed):
    with pytest.raises(PruningError, match="--at 0.3 is about sweeps"):
        command("export", undisturbed, "--at=0.3")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--prune-rates", "0.3"], "a single rate; give two or more, or --prune-rate 0.3"),
        (["--prune-rates", "0.5", "0.3"], "do not rise.* once.*: 0.3 0.5"),
        (["--prune-rates", "0.3", "0.3"], "do not rise"),
        (["--prune-rates", "0.3", "1"], "prune-rates.* below 1"),
        (["--prune-rates", "0.3", "0.5", "--prune-rate=0.3"], "contradict each other"),
        (["--prune-rates", "0.3", "0.999"], "leaves nothing"),
        (["--prune-rates", "0.3", "0.5", "--agent=evolution"], "choose one of reinforce, auto"),
        (["--prune-rates", "0.3", "0.5", "--ray-actors=2"], "one process"),
        (["--prune-rates", "0.3", "0.5", "--init=random-progressive"], "raises the prune rate"),
        (["--nested"], "not given"),
        (
            ["--prune-rates", "0.3", "0.5", "--nested", "--granularity=experts+channels"],
            "with fewer experts may have more channels",
        ),
    ],
)
def test_mistakes_are_refused_before_a_sweep_exists(more, says, options, tmp_path):
    shared = [word for word in options if not word.startswith("--prune-rate")]
    with pytest.raises(PruningError, match=says):
        train(*shared, *more, f"--output={tmp_path / 'sweep'}")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("count", range(2, 12))
def test_all_rates_together_cost_less_than_half(count):
    rates = tuple(round(0.05 * place, 2) for place in range(1, count + 1))
    run = TrainingRunConfig(total_timesteps=1000)
    settings = Settings(run=run, sweep=SweepConfig(prune_rates=rates))
    shares = [evaluations_of(settings, rate) for rate in rates]
    assert sum(shares) <= 400 * count
    assert max(shares) == shares[0] <= 1000


def test_a_run_of_earlier_versions_is_no_sweep(undisturbed, tmp_path):
    text = (undisturbed / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        text.replace("sweep:\n  prune_rates: null\n  nested: false\n", "")
    )
    assert "sweep" not in Run.open(tmp_path).sections
    assert Settings.from_run(Run.open(tmp_path)).sweep == SweepConfig()
