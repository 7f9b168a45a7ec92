"""benchmarks/gpu.py: parts as processes with limits, records that grow, and pages made of them."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from helpers.experiments_toy import ROOT, load
from helpers.masks import TRITON
from pgprune import PruningError
from pgprune.utils.jsonl import read_lines

CPU = ["--tiny", "--device=cpu"]
SAVES = """
import signal, time
def save(*_):
    print("saved")
    raise SystemExit(0)
signal.signal(signal.SIGINT, save)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""
PLACES = "<!-- gpu -->\nold\n<!-- end -->\n<!-- gpu-learning -->\nold\n<!-- end -->\n"


@pytest.fixture(scope="module")
def gpu():
    """The script as a module."""
    return load(ROOT / "benchmarks" / "gpu.py")


@pytest.fixture
def parts(gpu, monkeypatch):
    """The module of the parts, which looks at its commands all the time."""
    module = sys.modules["gpu_parts"]
    monkeypatch.setattr(module, "_POLL", 0.01)
    return module


def python(parts, code, **more):
    return parts.Part([sys.executable, "-S", "-c", code], lambda: {}, **more)


class TestACommandWithALimit:
    def ends(self, parts, tmp_path, part, late=0.0):
        """How a part ends at a limit of 100 s; once it says ready, it is that late."""
        self.log = tmp_path / "part.log"

        def clock():
            return late if self.log.exists() and "ready" in self.log.read_text() else 0.0

        return parts.run_part(part, self.log, limit=100, clock=clock)

    def test_that_ends_by_itself(self, parts, tmp_path, capfd):
        part = python(parts, "import os; print(os.environ['A'])", environment={"A": "shown"})
        assert self.ends(parts, tmp_path, part) == "done"
        assert capfd.readouterr().out == self.log.read_text() == "shown\n"

    def test_that_fails(self, parts, tmp_path):
        assert self.ends(parts, tmp_path, python(parts, "import absent.thing")) == "failed"
        assert parts.reason(self.log) == "the package absent is missing"
        assert (
            self.ends(parts, tmp_path, python(parts, "raise SystemExit('error: why')")) == "failed"
        )
        assert parts.reason(self.log) == "why"

    def test_that_is_asked_to_stop_in_time_to_save(self, parts, tmp_path):
        part = python(parts, SAVES, finish=20)
        assert self.ends(parts, tmp_path, part, late=90) == "stopped at its limit"
        assert self.log.read_text() == "ready\nsaved\n"

    def test_that_is_killed(self, parts, tmp_path):
        part = python(parts, SAVES)
        assert self.ends(parts, tmp_path, part, late=110) == "stopped at its limit"
        assert self.log.read_text() == "ready\n"


class TestParts:
    """What each part starts, and what it reads."""

    @pytest.fixture
    def make(self, parts, tmp_path):
        def make(name, device="cuda", **options):
            config = parts.PartsConfig(**options)
            return parts.make_part(name, config, device, tmp_path / "output", tmp_path)

        return make

    def test_the_real_models(self, make, monkeypatch, tmp_path):
        monkeypatch.setenv("PGPRUNE_ASSETS", str(tmp_path))
        for name in (
            "c4/sample_c4-rp1.jsonl",
            "c4/sample_c4-rp2.jsonl",
            "wikitext2-raw/wiki.test.txt",
        ):
            file = tmp_path / "text" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        exactness, speed, learning = (make(n) for n in ("exactness", "speed", "reinforce"))
        assert "--shape=llama-2-7b" in exactness.command and not exactness.environment
        assert speed.command[2:6] == ["--shapes", "llama-2-7b", "--prune-rates", "0.3"]
        asked = {"--agent=reinforce", "--model=smollm2", "--prune-rate=0.2", "--device=cuda"}
        asked |= {"--total-timesteps=30000", "--calibration=c4", "--evaluation=wikitext2,c4"}
        assert asked <= set(learning.command) and learning.finish > 0

    def test_the_builtin_text_where_there_are_no_files(self, make, monkeypatch):
        monkeypatch.delenv("PGPRUNE_ASSETS", raising=False)
        command = make("auto", auto_evaluations=7).command
        assert {"--total-timesteps=7", "--calibration=builtin"} <= set(command)
        assert "--evaluation=mine.txt" in make("auto", evaluation="mine.txt").command

    def test_tiny_models(self, make):
        assert "--shape=tiny" in make("exactness", "cpu", tiny=True).command
        assert "builtin" in make("speed", "cpu", tiny=True).command
        assert "--model=builtin" in make("auto", "cpu", tiny=True).command

    def test_a_run_to_resume(self, make, tmp_path):
        assert make("auto", resume=True).command[-1] == f"--resume={tmp_path / 'output' / 'auto'}"

    def test_tests_that_passed_and_failed(self, make, tmp_path):
        cases = '<testcase name="a"/><testcase name="b"><failure/></testcase>'
        cases += '<testcase name="c"><skipped/></testcase><testcase name="d"><error/></testcase>'
        part = make("tests")
        assert any(word.endswith("test_kernels.py") for word in part.command)
        assert part.read() == {}
        (tmp_path / "tests.xml").write_text(
            f"<testsuites><testsuite>{cases}</testsuite></testsuites>"
        )
        assert part.read() == {"passed": 1, "skipped": 1, "failed": ["b", "d"]}

    def test_a_run_that_was_stopped(self, make, undisturbed, tmp_path):
        part = make("auto")
        assert part.read() == {}
        (tmp_path / "output").mkdir()
        (tmp_path / "output" / "auto").symlink_to(undisturbed)
        found = part.read()
        results = json.loads((undisturbed / "results.json").read_text())
        assert found["perplexity"] == results["perplexity"]
        assert found["mask_evaluations"] == found["asked_evaluations"] == 4
        assert str(tmp_path.parent) not in json.dumps(found)


class TestOneCommand:
    def test_records_grow_and_a_failure_stops_no_other_part(
        self, gpu, parts, monkeypatch, tmp_path
    ):
        limits = []

        def make(name, config, device, output, scratch):
            assert len(read_lines(output / "gpu.jsonl")) == len(limits)
            return parts.Part([name], lambda: {})

        def run(part, log, limit):
            limits.append(limit)
            log.write_text("error: no luck\n")
            return "failed" if part.command == ["speed"] else "done"

        half_a_minute_each = SimpleNamespace(monotonic=lambda: 30 * len(limits))
        monkeypatch.setattr(gpu, "time", half_a_minute_each)
        monkeypatch.setattr(gpu, "make_part", make)
        monkeypatch.setattr(gpu, "run_part", run)
        only = ["--only", "reinforce", "speed", "auto"]
        assert gpu.main([*CPU, *only, f"--output={tmp_path / 'out'}"]) == 1
        first, *others = read_lines(tmp_path / "out" / "gpu.jsonl")
        assert first["outcome"] == "failed" and first["why"] == "no luck" and first["tiny"]
        assert [one["part"] for one in others] == ["auto", "reinforce"]
        assert limits == [70, 70 + 100 - 30, 70 + 100 + 150 - 60], (
            "what a part leaves is for others"
        )

    def test_the_tests_need_a_gpu(self, gpu, tmp_path, capsys):
        assert gpu.main([*CPU, "--only", "tests", f"--output={tmp_path}"]) == 0
        assert "left out after 0 s (they need a GPU)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--device=cpu"], "no GPU to measure.* or give --tiny"),
            (["--only=all"], "--only: must be one of tests, exactness"),
            ([*CPU, "--resume"], "no run .*auto to resume"),
            ([*CPU, "--speed-seconds=0"], "--speed-seconds: .* at least 1"),
            ([*CPU, "--into=absent.md"], "absent.md has no place for a table"),
        ],
    )
    def test_mistakes_are_refused_before_any_work(
        self, gpu, monkeypatch, tmp_path, options, message
    ):
        monkeypatch.setattr(gpu, "measure", None)
        with pytest.raises(PruningError, match=message):
            gpu.main([*options, f"--output={tmp_path}"])

    def test_no_run_is_overwritten(self, gpu, monkeypatch, tmp_path):
        monkeypatch.setattr(gpu, "measure", None)
        (tmp_path / "auto").mkdir()
        with pytest.raises(PruningError, match="auto exists; choose another --output, or --resume"):
            gpu.main([*CPU, f"--output={tmp_path}"])

    @pytest.mark.slow
    def test_tiny_models_on_a_cpu(self, gpu, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(PLACES)
        assert gpu.main([*CPU, f"--output={tmp_path / 'out'}", f"--into={page}"]) == 0
        outcomes = [one["outcome"] for one in read_lines(tmp_path / "out" / "gpu.jsonl")]
        assert outcomes == ["left out", *["done"] * 4]
        text = page.read_text()
        assert "| builtin | 0.3 |" in text and "| reinforce | 2 | 2 |" in text


class TestExactness:
    @pytest.fixture
    def exactness(self, gpu):
        return load(ROOT / "benchmarks" / "gpu_exactness.py")

    @TRITON
    def test_every_way_errs_as_bfloat16_does(self, exactness, tmp_path):
        output = tmp_path / "exactness.jsonl"
        exactness.main(["--shape=tiny", "--prune-rates=0.5", "--device=cpu", f"--output={output}"])
        dense, *found = read_lines(output)
        assert 1e-4 < dense["error"] < 2e-2
        ways = ["masked", "sliced", "kernels", "pruned"]
        assert [one["way"] for one in found] == 2 * ways
        assert all(one["of_dense"] < 1.5 for one in found[:4])
        assert all(one["distance"] < dense["error"] for one in found[4:])

    def test_another_mask_is_far_away(self, exactness):
        model = exactness.make(exactness.TINY, torch.device("cpu"))
        ids = exactness.token_ids(model, (1, 8))
        units = exactness.PruningUnits.of(model)
        ((_, mask),) = exactness.masks(units, [0.5])
        lm = exactness.MaskedLM(model, units)
        one, other = lm.logits(torch.stack([mask, units.ones()]), ids)
        assert exactness.distance(one, other) > 0.1

    def test_nothing_is_overwritten(self, exactness, tmp_path):
        with pytest.raises(PruningError, match="exists"):
            exactness.main(["--shape=tiny", "--device=cpu", f"--output={tmp_path}"])


class TestReport:
    """Records that nobody measured."""

    COMMON = {"tiny": False, "machine": {"device": "A GPU"}, "versions": {"torch": "2"}}

    def record(self, part, outcome="done", **more):
        return {"part": part, "outcome": outcome, **self.COMMON, **more}

    def blocks(self, *records):
        return sys.modules["gpu_report"].blocks(records)

    def test_nothing(self, gpu):
        assert set(self.blocks().values()) == {
            "Nothing of this was measured yet: no GPU was at hand.\n"
        }

    def test_the_last_record_of_a_part_counts(self, gpu):
        tests = [
            self.record("tests", "failed", why="no gymnasium"),
            self.record("tests", found={"passed": 3, "skipped": 0, "failed": []}),
        ]
        assert self.blocks(*tests)["gpu"] == (
            "**Tests**, A GPU, torch 2: done.\n\nTests marked gpu: 3 passed, 0 skipped, 0 failed.\n"
        )
        assert "failed (no gymnasium)" in self.blocks(tests[0])["gpu"]

    def test_exactness_that_was_stopped(self, gpu):
        made = [{"layers": 4, "rate": 0.0, "way": "dense", "error": 0.01}]
        for way, rate, of in (("masked", 0.3, 1.0), ("pruned", 0.3, 1.1), ("masked", 0.5, 1.2)):
            made.append({"layers": 4, "rate": rate, "way": way, "error": 0.01, "of_dense": of})
        record = self.record("exactness", "stopped at its limit", found={"comparisons": made})
        text = self.blocks(record)["gpu"]
        assert "At most 1.20; the bound is 1.5:" in text
        assert "| 0.3 | 1.00 | 1.10 |\n| 0.5 | 1.20 | – |\n" in text

    def test_learning(self, gpu):
        found = {"model": "smollm2", "calibration": ["c4"], "mask_evaluations": 9_000}
        found |= {"asked_evaluations": 30_000, "prune_rate": {"requested": 0.2}}
        found |= {"method_cost": {"seconds": 120.2}}
        found["perplexity"] = {
            "dense": {"wiki": 52},
            "initial": {"wiki": 138},
            "masked": {"wiki": 110},
        }
        records = [self.record("auto", "failed", why="no gguf")]
        records.append(self.record("reinforce", "stopped at its limit", found=found))
        text = self.blocks(*records)["gpu-learning"]
        assert "smollm2, 20% pruned, chosen on c4" in text
        assert "| reinforce | 9,000 | 30,000 | 120 | 52.00 | 138.00 | 110.00 |" in text
        assert "- auto, A GPU, torch 2: failed (no gguf).\n" in text

    def test_into_a_page(self, gpu, tmp_path):
        record = self.record("tests", found={"passed": 3, "skipped": 0, "failed": []})
        (tmp_path / "gpu.jsonl").write_text(json.dumps(record) + "\n")
        page = tmp_path / "page.md"
        page.write_text(PLACES)
        assert gpu.main([f"--output={tmp_path}", "--report", f"--into={page}"]) == 0
        assert "3 passed" in page.read_text() and "old" not in page.read_text()
