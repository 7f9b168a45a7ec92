"""Figures: drawn from what a run leaves, and politely absent without matplotlib."""

import math
import sys

import numpy as np
import pytest

from pgprune import PruningError
from pgprune.evaluation.latency_report import plot_gains
from pgprune.masking.units import Group
from pgprune.runs.plots import plot_kept_shares, plot_learning_curve, smooth_curve

GROUPS = [Group(layer, kind, 0, 1) for layer in range(4) for kind in ("heads", "channels")]


pytestmark = pytest.mark.usefixtures("painted")


@pytest.fixture
def progress(tmp_path):
    path = tmp_path / "progress.csv"
    lines = ["step,rollout/loss,train/baseline,validation/best_loss,time/timesteps"]
    for step in range(1, 41):
        best = 3 + 1 / step if step % 10 == 0 else math.nan
        lines.append(f"{step},{3 + 2 / step},{3.1 + 2 / step},{best},{2 * step}")
    path.write_text("\n".join(lines) + "\n")
    return path


def picture(path):
    image = pytest.importorskip("matplotlib.image").imread(path)
    assert image.std() > 0.05  # something is drawn
    return image


def test_learning_curve_of_a_run(undisturbed, tmp_path):
    assert plot_learning_curve(undisturbed / "progress.csv", tmp_path / "curve.png")
    picture(tmp_path / "curve.png")


def test_learning_curve(progress, tmp_path):
    assert plot_learning_curve(progress, tmp_path / "plots" / "curve.png")
    height, width, _ = picture(tmp_path / "plots" / "curve.png").shape
    assert width > height > 500


def test_learning_curve_of_a_run_that_logged_only_steps(tmp_path):
    (tmp_path / "progress.csv").write_text("step\n1\n2\n")
    assert plot_learning_curve(tmp_path / "progress.csv", tmp_path / "curve.png")


@pytest.mark.filterwarnings("error")
def test_gains(tmp_path):
    gain = [(1.3, 1.2, 1.5), (1.7, 1.6, 1.9)]
    panels = {"prefill": {"rate 0.3": gain, "rate 0.5": gain}, "decode": {"rate 0.3": gain}}
    assert plot_gains(tmp_path / "gains.png", ["1 x 128", "8 x 128"], panels, "dense")
    picture(tmp_path / "gains.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("initial", [None, np.full(8, 0.6)])
def test_kept_shares(tmp_path, initial):
    learned = np.linspace(0, 1, 8)
    assert plot_kept_shares(tmp_path / "kept.png", GROUPS, learned, initial, target=0.6)
    picture(tmp_path / "kept.png")


def test_without_matplotlib_there_is_a_note(progress, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert not plot_learning_curve(progress, tmp_path / "curve.png")
    assert caplog.messages == ["no curve.png: it needs pip install 'pgprune[plots]'"]
    assert not (tmp_path / "curve.png").exists()


def test_smoothing_is_a_centred_mean_that_leaves_out_what_is_missing():
    values = np.ones(60)
    values[10] = math.nan
    np.testing.assert_allclose(smooth_curve(values), 1)
    np.testing.assert_allclose(smooth_curve(np.arange(60.0))[1:-1], np.arange(1, 59))


def test_a_place_that_cannot_be_written(progress, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PruningError, match="cannot write .*curve.png"):
        plot_learning_curve(progress, tmp_path / "file" / "curve.png")
