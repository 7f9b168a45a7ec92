"""The parts of the GPU benchmark: the command of each, and what is read of what it leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pgprune.data.known_texts import KNOWN_TEXTS
from pgprune.data.sources import items
from pgprune.errors import PruningError
from pgprune.models.load import ModelConfig
from pgprune.runs.run import Run
from pgprune.surgery.random_models import SHAPES
from pgprune.utils.jsonl import Record, read_lines
from pgprune.utils.options import Config, option, same_option

ROOT = Path(__file__).parents[1]
LEARNING = ("auto", "reinforce")
PARTS = ("tests", "exactness", "speed", *LEARNING)
PRUNE_RATE = 0.2
"""Of the learned masks."""

_POLL = 0.2  # seconds between looks at a command
_FINISH = 25  # seconds that a learning run is left to save and evaluate what it has learned
_PYTHON = sys.executable
_MARK = "pytest.mark.gpu\n"


@dataclass(frozen=True)
class PartsConfig(Config):
    """Parts: which, on which device, and how much of each."""

    only: tuple[str, ...] = option(PARTS, "parts to measure, in this order", choices=PARTS)
    device: str = same_option(ModelConfig, "device", "auto")
    tiny: bool = option(False, "tiny models in place of the real ones, to try the parts anywhere")
    shape: str = option("llama-2-7b", "exactness and speed: shape of the model", choices=[*SHAPES])
    prune_rates: tuple[float, ...] = option(
        (0.3, 0.5), "exactness and speed: prune rates of random masks", above=0, below=1
    )
    model: str = option("smollm2", "learning: which model, as pgprune train takes it")
    calibration: str | None = option(
        None, "learning: text", unset="c4 where PGPRUNE_ASSETS has it, else builtin", metavar="TEXT"
    )
    evaluation: str | None = option(
        None,
        "learning: texts for perplexities",
        unset="wikitext2 and c4 where PGPRUNE_ASSETS has them, else builtin",
        metavar="TEXT",
    )
    auto_evaluations: int = option(3_000, "learning: mask evaluations of auto", minimum=1)
    reinforce_evaluations: int = option(30_000, "learning: those of reinforce", minimum=1)
    resume: bool = option(False, "learning: resume the runs in --output, with their own settings")


@dataclass(frozen=True)
class Part:
    """A command, and how to read what it leaves.

    Attributes:
        command: its words.
        read: returns what it has found so far; called once it has ended.
        finish: seconds before its limit at which it is asked to stop, by SIGINT.
        environment: variables besides those of this process.
    """

    command: list[str]
    read: Callable[[], Record]
    finish: float = 0
    environment: Mapping[str, str] = field(default_factory=dict)


def make_part(name: str, config: PartsConfig, device: str, output: Path, scratch: Path) -> Part:
    """Makes a part.

    Args:
        name: of ``PARTS``.
        config: how much of it.
        device: the name of the device.
        output: directory in which runs stay.
        scratch: directory of what is read at once.
    """
    if name in LEARNING:
        return _learning(name, config, device, output)
    return {"tests": _tests, "exactness": _exactness, "speed": _speed}[name](
        config, device, scratch
    )


def check_runs(config: PartsConfig, output: Path) -> None:
    """Checks that each learning part has a new run, or one to resume.

    Raises:
        PruningError: it has not.
    """
    for name in filter(config.only.__contains__, LEARNING):
        run = output / name
        if run.exists() and not config.resume:
            raise PruningError(f"{run} exists; choose another --output, or --resume to go on")
        if config.resume and not run.exists():
            raise PruningError(f"there is no run {run} to resume; leave out --resume")


def run_part(
    part: Part, log: Path, limit: float, clock: Callable[[], float] = time.monotonic
) -> str:
    """Runs the command of a part, and shows its output as it comes.

    Args:
        part: what to run.
        log: new file for its output.
        limit: seconds after which it is killed.
        clock: tells the seconds.

    Returns:
        ``done``, ``stopped at its limit`` or ``failed``.
    """
    started, asked, killed = clock(), False, False
    with log.open("wb") as written, log.open(encoding="utf-8", errors="replace") as shown:
        environment = os.environ | dict(part.environment)
        child = subprocess.Popen(
            part.command, stdout=written, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while child.poll() is None:
                passed = clock() - started
                if passed >= limit and not killed:
                    child.kill()
                    killed = True
                elif part.finish and passed >= limit - part.finish and not asked:
                    child.send_signal(signal.SIGINT)
                    asked = True
                time.sleep(_POLL)
                print(shown.read(), end="", flush=True)
        finally:
            child.kill()  # also when this process is told to end
            child.wait()
        print(shown.read(), end="", flush=True)
    if asked or killed:
        return "stopped at its limit"
    return "failed" if child.returncode else "done"


def reason(log: Path) -> str:
    """Says why a command failed, by its output: a package that is missing, or its last line."""
    said = log.read_text(encoding="utf-8", errors="replace")
    if missing := re.findall(r"No module named '(\w+)", said):
        return f"the package {missing[-1]} is missing"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else "it said nothing"


def _tests(config: PartsConfig, device: str, scratch: Path) -> Part:
    found = scratch / "tests.xml"
    # Only their files, since others may import packages that a bare machine lacks.
    files = [file for file in (ROOT / "tests").rglob("test_*.py") if _MARK in file.read_text()]
    command = [_PYTHON, "-m", "pytest", "-q", "-m", "gpu", *map(str, sorted(files))]
    command += [f"--config-file={ROOT / 'pyproject.toml'}", f"--junitxml={found}"]

    def read() -> Record:
        if not found.exists():
            return {}
        cases = list(ElementTree.parse(found).iter("testcase"))
        failed = [
            case.get("name")
            for case in cases
            if {"failure", "error"} & {child.tag for child in case}
        ]
        skipped = sum(case.find("skipped") is not None for case in cases)
        passed = len(cases) - len(failed) - skipped
        return {"passed": passed, "skipped": skipped, "failed": failed}

    return Part(command, read)


def _exactness(config: PartsConfig, device: str, scratch: Path) -> Part:
    found, on_cpu = scratch / "exactness.jsonl", device == "cpu"
    command = [_PYTHON, str(ROOT / "benchmarks" / "gpu_exactness.py"), f"--device={device}"]
    command += [f"--shape={'tiny' if config.tiny else config.shape}", f"--output={found}"]
    command += ["--prune-rates", *map(str, config.prune_rates)]
    environment = {"TRITON_INTERPRET": "1"} if config.tiny and on_cpu else {}
    return Part(command, lambda: {"comparisons": read_lines(found)}, environment=environment)


def _speed(config: PartsConfig, device: str, scratch: Path) -> Part:
    found = scratch / "speed"
    own = ["--shapes", "builtin" if config.tiny else config.shape]
    own += ["--prune-rates", *map(str, config.prune_rates)]
    if config.tiny:
        own += ["--repeats=1", "--batch-size=2", "--sequence-length=16"]
    script = "benchmarks/speed.py"
    command = [_PYTHON, str(ROOT / script), *own, f"--device={device}", f"--output={found}"]

    def read() -> Record:
        report = _read_json(found / "speed.json")
        # Without the paths of this machine, which a page would show.
        return report | {"command": " ".join(["python", script, *own])} if report else {}

    return Part(command, read)


def _learning(agent: str, config: PartsConfig, device: str, output: Path) -> Part:
    run, train = output / agent, [_PYTHON, "-m", "pgprune.commands", "train"]
    if config.resume:
        command = [*train, f"--resume={run}"]
    else:
        command = [*train, f"--agent={agent}", f"--output={run}", f"--device={device}"]
        command += ["--reward=plain"]  # the same units for both agents, without new weights
        # float32, so that perplexities compare with those of a CPU; the host takes longer anyway.
        command += [f"--prune-rate={PRUNE_RATE}", "--dtype=float32", *_amounts(agent, config)]
    return Part(command, lambda: _learned(run), _FINISH)


def _amounts(agent: str, config: PartsConfig) -> list[str]:
    if config.tiny:
        few = ["--total-timesteps=2", "--evaluation-windows=4", "--init-samples=8"]
        return ["--model=builtin", *few]
    evaluations = {"auto": config.auto_evaluations, "reinforce": config.reinforce_evaluations}
    c4, wiki = (KNOWN_TEXTS[name] for name in ("c4", "wikitext2"))
    calibration = "c4" if c4.file("train") else "builtin"
    evaluation = "wikitext2,c4" if wiki.file("test") and c4.file("test") else "builtin"
    return [
        f"--model={config.model}",
        f"--total-timesteps={evaluations[agent]}",
        f"--calibration={config.calibration or calibration}",
        f"--evaluation={config.evaluation or evaluation}",
        "--checkpoint-every=500",
    ]


def _learned(run: Path) -> Record:
    """Reads results and settings of a run, without the paths of this machine."""
    results = _read_json(run / "results.json")
    if not results:
        return {}
    names = ("prune_rate", "parameters", "perplexity", "completed", "mask_evaluations", "seed")
    costs = ("method_cost", "tokens", "seconds", "peak_memory_bytes")
    sections = Run.open(run).sections
    return {
        "model": Path(results["model"]).name,
        "calibration": [item.name for item in items(sections["data"]["calibration"])],
        "asked_evaluations": sections["run"]["total_timesteps"],
        **{name: results[name] for name in (*names, *costs)},
    }


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
