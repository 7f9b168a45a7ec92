"""The figures of a training step."""

from pgprune.agents.training.run_state import training_figures


def test_the_figures_of_training_are_those_that_people_watch():
    metrics = {
        "rollout/loss": 3.25,
        "rollout/reward": -3.25,
        "train/baseline": float("nan"),
        "validation/best_loss": 3.0,
        "rollout/kept_share/heads": 0.6,
        "rollout/kept_share/channels": 0.601,
        "train/learning_rate": 0.1,
    }
    assert training_figures(metrics) == {
        "loss": "3.2500",
        "reward": "-3.2500",
        "best": "3.0000",
        "heads kept": "60.0%",
        "channels kept": "60.1%",
    }
