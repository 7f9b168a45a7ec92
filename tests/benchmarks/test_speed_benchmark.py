"""The script behind docs/performance.md: a run of all of it on a tiny shape, and mistakes."""

import json
import sys
from pathlib import Path

import pytest
import torch

from helpers.masks import TRITON
from helpers.tiny import tiny_model, tokens
from pgprune import PruningError
from pgprune.evaluation.timing import Clock
from pgprune.masking.masked_lm import MaskedLM
from pgprune.masking.units import PruningUnits
from pgprune.surgery.random_models import SHAPES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TINY = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
QUICK = ["--shapes=tiny", "--batch-size=2", "--sequence-length=8", "--repeats=2"]


@pytest.fixture
def speed(monkeypatch):
    """The script as a module that knows a tiny shape."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(SHAPES, "tiny", TINY)
    import speed

    threads = torch.get_num_threads()
    yield speed
    torch.set_num_threads(threads)
    for name in ("speed", "speed_work", "speed_report"):
        sys.modules.pop(name, None)


def test_a_run_prints_and_writes_what_it_found(speed, tmp_path, capsys):
    output, page = tmp_path / "speed", tmp_path / "page.md"
    page.write_text("Before.\n<!-- speed -->\nold\n<!-- end -->\nAfter.\n")
    options = ["--prune-rates", "0.3", "0.5", f"--output={output}", f"--into={page}"]
    speed.main(QUICK + options, agent_shape="tiny")
    report = json.loads((output / "speed.json").read_text())
    found = report["shapes"]["tiny"]
    assert set(found["rounds"]) == {"dense"} | {
        f"{work} {rate}" for work in ("masked", "sliced", "products") for rate in ("0.3", "0.5")
    }
    assert all(len(rounds) == 2 for rounds in found["rounds"].values())
    assert found["operations"]["0.5"] < found["operations"]["0.3"]
    assert report["agent"]["units"] == 2 * (4 + 40)
    assert {name: len(rounds) for name, rounds in report["host"]["rounds"].items()} == {
        "dense": 2,
        "sliced": 2,
    }
    (blocks, head), (sliced,) = found["rounds"]["dense"][0], found["rounds"]["sliced 0.5"][0]
    spread = found["rates"]["0.5"]["sliced / bound"]
    assert spread["low"] <= spread["median"] <= spread["high"]
    one = sliced / (0.5 * blocks + head)
    two = 2 * spread["median"] - one  # of two rounds the median is the mean
    blocks, head = found["rounds"]["dense"][1]
    assert two == pytest.approx(found["rounds"]["sliced 0.5"][1][0] / (0.5 * blocks + head))
    table = (output / "speed.md").read_text()
    assert "| tiny | 0.3 |" in table and "kernels" not in table
    assert page.read_text() == f"Before.\n<!-- speed -->\n{table}<!-- end -->\nAfter.\n"
    assert "written to" in capsys.readouterr().out


@TRITON
def test_kernels_stand_beside_the_plain_products_where_they_are(speed, monkeypatch, tmp_path):
    from speed_work import ways

    with_kernels = {"masked": ("masked", "plain"), "sliced": ("sliced", "plain")}
    with_kernels["kernels"] = ("sliced", "triton")
    assert "kernels" not in ways(torch.device("cpu"))
    assert ways(torch.device("cuda")) == with_kernels
    monkeypatch.setattr(speed, "ways", lambda device: with_kernels)
    output = tmp_path / "speed"
    speed.main([*QUICK, "--prune-rates=0.5", f"--output={output}"], agent_shape="tiny")
    report = json.loads((output / "speed.json").read_text())
    assert len(report["shapes"]["tiny"]["rounds"]["kernels 0.5"]) == 2
    assert report["shapes"]["tiny"]["rates"]["0.5"]["kernels / dense"]["median"] > 0
    table = (output / "speed.md").read_text()
    assert "| sliced | kernels | of bound |" in table and "| kernels (MiB) |" in table


def test_the_products_are_the_operations_of_a_sliced_evaluation(speed):
    import speed_work
    from torch.utils.flop_counter import FlopCounterMode

    model, ids = tiny_model("opt"), tokens()
    units = PruningUnits.of(model)
    mask = (torch.arange(units.n) % 2).to(torch.uint8)
    clock = Clock(torch.device("cpu"))
    weights = speed_work.kept_weights(model, units, mask)
    with FlopCounterMode(display=False) as products:
        speed_work.products_work(weights, ids.numel(), clock)
    assert products.get_total_flops() == 2 * ids.numel() * sum(w.numel() for w in weights)
    with FlopCounterMode(display=False) as evaluation:
        MaskedLM(model, units, "sliced").losses(mask[None], ids)
    counts = evaluation.get_flop_counts()["Global"]
    linear = sum(n for name, n in counts.items() if "mm" in str(name) and "bmm" not in str(name))
    unpredicted = 2 * len(ids) * model.get_output_embeddings().weight.numel()
    assert linear == products.get_total_flops() - unpredicted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "100m", "70b"], "--shapes: must be one of builtin, 100m, .* not '70b'"),
        (["--shapes=llama-2-7b", "--device=cpu"], "llama-2-7b is measured on a GPU only"),
        (["--prune-rates", "0.5", "1"], "--prune-rates: .* below 1, not 1"),
        (["--prune-rates=half"], "--prune-rates: must be a number .* 'half'"),
        (["--clock=processor", "--threads=2", "--device=cpu"], "give --threads 1"),
        (["--repeats=0"], "repeats"),
        (["--into=absent.md"], "has no place for the table"),
    ],
)
def test_mistakes_are_refused_before_any_work(speed, monkeypatch, options, message):
    monkeypatch.setattr(speed, "load", None)
    with pytest.raises(PruningError, match=message):
        speed.main(options)


def test_nothing_is_overwritten(speed, monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "load", None)
    with pytest.raises(PruningError, match="exists"):
        speed.main([*QUICK, f"--output={tmp_path}"])
