"""FLAP as a method: its metric, and biases that compensate for the pruned inputs."""

from torch import Tensor

from pgprune.budget.problem import Problem
from pgprune.masking.layer_mask import LayerMask
from pgprune.masking.masked_lm import MaskedLM
from pgprune.methods.common.base import MethodConfig, Pruned, method
from pgprune.metrics.base import FINE
from pgprune.metrics.flap import Moments, check_windows, dense_moments, flap_importance
from pgprune.models.families import family_of
from pgprune.repair.repair import Repair


@method("flap", FINE, budgets=("parameters", "per-kind", "units"), biases=True)
def flap(problem: Problem, windows: Tensor, seed: int, config: MethodConfig) -> Pruned:
    """Prunes inputs that fluctuate little, and adds their mean as a bias.

    The bias of an output or down projection grows by W_P mu_P, the pruned columns times the mean
    of their inputs in the dense model. Weights stay.

    Source: An et al. 2024 (CASIA-IVA-Lab/FLAP); see ``pgprune.metrics.flap``.

    Options: ``fluctuation``.

    Raises:
        PruningError: there is only one window.
    """
    lm = problem.lm
    check_windows(windows)
    moments = dense_moments(lm, windows)
    importance = flap_importance(lm, moments, config.fluctuation)
    mask = importance.mask(problem.budget)
    return Pruned(mask, importance, compensation(lm, moments, mask))


def compensation(lm: MaskedLM, moments: dict[tuple[int, str], Moments], mask: Tensor) -> Repair:
    """Computes a repair of the biases alone, which stand for the mean of the pruned inputs.

    A projection gives W x + b = W_K x_K + W_P x_P + b. Without the pruned inputs x_P, the bias
    b + W_P mu_P keeps the mean of its output.
    """
    family = family_of(lm.model.config)
    repair = Repair()
    for (layer, kind), inputs in moments.items():
        part = LayerMask(mask[None], lm.units, layer, family)
        kept = part.output_columns() if kind == "heads" else part.by_kind.get("channels")
        if kept is None or bool(kept.all()):
            continue  # nothing is pruned, so the stored bias is right
        linear = lm.linear(layer, kind)
        pruned_mean = inputs.mean * (1 - kept[0].double())  # (inputs,)
        bias = linear.weight.double().cpu() @ pruned_mean  # (D,)
        if isinstance(linear.bias, Tensor):
            bias += linear.bias.double().cpu()
        repair.biases[layer, kind] = bias.to(lm.dtype)
    return repair
