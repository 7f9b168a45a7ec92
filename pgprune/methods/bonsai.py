"""Bonsai: prunes units in small rounds, by a regression over random sub-models."""

from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.errors import PruningError
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.base import FINE
from pgprune.metrics.bonsai import bonsai as scores_of
from pgprune.metrics.bonsai import rates_of_rounds


@method("bonsai", FINE, random=True)
def bonsai(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes a twentieth of the units at a time, those with the smallest slopes in a regression.

    A round takes the prior of all units that are left (Wanda's score on the pruned model) and
    makes the lowest of each layer and kind its candidates, twice the number that it prunes.
    Sub-models come in pairs: one loses half of the candidates (and one more) of all layers and
    kinds at once, drawn without replacement with probability proportional to how far the prior is
    from the layer's largest; the other one loses the rest. Their losses on a few windows are
    regressed on which candidates they keep, and the candidates of the smallest slopes are pruned.
    Rounds end at the budget: each is the budget's rounding at its rate. The weights stay until the
    end.

    Prior, candidates, sampling and rounds are theirs. Ours: the regression is a ridge in closed
    form, whose penalty cross-validation over pairs chooses. Theirs runs Adam from zero over a grid
    of penalties, step sizes and batch sizes and stops early, again by cross-validation: shrinkage
    as well, but slow, and dependent on the grid. The target is the loss; theirs is the perplexity,
    whose outliers dominate a least-squares fit. Sub-models are evaluated on one batch by default,
    theirs on 32 windows, so that 50 % costs about an agent's 2,000 timesteps. A round prunes its
    share of whatever the budget counts, theirs of parameters. Numbers of candidates refer to the
    dense layer, so that they suffice at any rate. A coin decides for each layer and kind which
    sub-model of a pair loses the larger half; without it the regression could not see the worth of
    all candidates of a layer together. A kv group is one unit.

    Source: Dery et al. 2024, Everybody Prune Now (ldery/Bonsai).

    Options: ``bonsai_masks``, ``bonsai_windows``, ``bonsai_fraction``.

    Returns:
        The mask, and scores that order units as they were pruned.

    Raises:
        PruningError: sub-models are to be evaluated on more windows than there are.
    """
    if len(windows) < config.bonsai_windows:
        raise PruningError(
            f"bonsai_windows {config.bonsai_windows} is more than the {len(windows)} calibration "
            "windows; ask for fewer, or for more method_samples"
        )
    budget, fraction = problem.budget, config.bonsai_fraction
    importance = scores_of(
        problem.lm,
        windows,
        budget,
        seed,
        masks=config.bonsai_masks,
        evaluated_on=config.bonsai_windows,
        fraction=fraction,
    )
    rounds = len(rates_of_rounds(budget.prune_rate, fraction))
    return Pruned(importance.mask(budget), importance, notes={"rounds": rounds})
