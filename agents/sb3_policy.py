"""Policies for Stable-Baselines3 over masks of 10^5 units: no state, and a ratio for each unit.

The probability of a mask is a product of n factors. Ratios of these products leave the range of
floating-point numbers at n = 10^5 in PPO's first update, so everything here is a mean over units.
"""

import math
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    DiagGaussianDistribution,
    Distribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

_DEVIATION = 0.25  # of a policy over a Box of width 2, at the beginning


class UnitBernoulli(BernoulliDistribution):
    """Bernoulli distributions whose log probability is the mean over the units."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns the mean log probability of a unit: (K, n) -> (K,)."""
        return self.distribution.log_prob(actions).mean(dim=1)


class UnitGaussian(DiagGaussianDistribution):
    """Gaussians whose log probability is the mean over the dimensions."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """Returns the mean log probability of a dimension: (K, d) -> (K,)."""
        return self.distribution.log_prob(actions).mean(dim=1)


class UnitPolicy(ActorCriticPolicy):
    """A policy without an observation: a logit a unit, or a mean and a deviation a dimension.

    The next batch does not depend on the last mask, so a critic could only learn one number. The
    mean reward of a step, whose masks share a batch, is a better baseline; no critic is learned.

    Args:
        *args: as ``ActorCriticPolicy``.
        start: logits or means to begin with, (d,).
        deviation: of a Gaussian at the beginning.
        **kwargs: as ``ActorCriticPolicy``.

    Attributes:
        location: logits (MultiBinary) or means (Box), (d,).
        log_std: log deviations of a Gaussian, (d,).
    """

    def __init__(self, *args: Any, start: Tensor, deviation: float, **kwargs: Any) -> None:
        self._start = start
        kwargs |= {"net_arch": [], "log_std_init": math.log(deviation)}
        super().__init__(*args, **kwargs)

    def _build(self, lr_schedule: Any) -> None:
        """Makes the parameters, without the linear layers that the stock policy has."""
        self._build_mlp_extractor()
        self.location = nn.Parameter(self._start.float().clone())
        size = len(self._start)
        if isinstance(self.action_space, spaces.Box):
            self.log_std = nn.Parameter(torch.full((size,), self.log_std_init))
            self.action_dist = UnitGaussian(size)
        else:
            self.action_dist = UnitBernoulli(size)
        # A rollout needs values. All masks have the same observation, so the values cancel.
        self.value_net = nn.Linear(self.mlp_extractor.latent_dim_vf, 1)
        optimizer: Any = self.optimizer_class
        self.optimizer = optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        location = latent_pi.new_zeros(len(latent_pi), 1) + self.location  # (K, d)
        if isinstance(self.action_dist, DiagGaussianDistribution):
            return self.action_dist.proba_distribution(location, self.log_std)
        assert isinstance(self.action_dist, BernoulliDistribution)
        return self.action_dist.proba_distribution(location)


class UnitPPO(PPO):
    """PPO with the ratio of each unit's probabilities clipped by itself.

    At the old policy the gradient is PPO's. A unit whose probability has moved far enough stops
    while the others continue; one ratio for the mask would stop them all, or overflow.
    A rollout is one batch, because its masks share their text.
    """

    def train(self) -> None:
        """Updates the policy from the rollout."""
        self._update_learning_rate(self.policy.optimizer)
        (rollout,) = self.rollout_buffer.get()
        advantages = rollout.advantages[:, None]  # (K, 1)
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        old = self._log_probs(rollout).detach()  # (K, n)
        clip = self.clip_range(1.0)  # type: ignore[operator]
        for _ in range(self.n_epochs):
            # Eq. (7) of Schulman et al. 2017, with a ratio for each unit
            ratio = (self._log_probs(rollout) - old).exp()  # (K, n)
            clipped = ratio.clamp(1 - clip, 1 + clip)
            gain = torch.min(advantages * ratio, advantages * clipped)
            self.policy.optimizer.zero_grad()
            (-gain.sum(dim=1).mean()).backward()
            self.policy.optimizer.step()
        self._n_updates += self.n_epochs
        with torch.no_grad():
            log_ratio = self._log_probs(rollout) - old
            ratio = log_ratio.exp()
        # The mean of r - 1 - log r estimates the divergence without bias and is never negative.
        self.logger.record("train/approx_kl", float((ratio - 1 - log_ratio).mean()))
        self.logger.record("train/clip_fraction", float(((ratio - 1).abs() > clip).float().mean()))

    def _log_probs(self, rollout: Any) -> Tensor:
        """Returns the log probability of every unit of the rollout's actions, (K, n)."""
        distribution: Any = self.policy.get_distribution(rollout.observations).distribution
        return distribution.log_prob(rollout.actions)


def unit_policy_options(env: Any, start: Tensor, rate: Any, seed: int) -> dict[str, Any]:
    """Returns the options that PPO, A2C and TRPO share.

    Episodes have one step (gamma is 0). Advantages are standardised in each step, whose masks share
    a batch: the mean is the baseline.

    Args:
        env: a ``PruningVecEnv``.
        start: logits or means to begin with, (d,).
        rate: step size, by how much of the run is left.
        seed: of everything random.
    """
    return {
        "policy": UnitPolicy,
        "policy_kwargs": {"start": start, "deviation": _DEVIATION},
        "env": env,
        "learning_rate": rate,
        "n_steps": 1,
        "gamma": 0.0,
        "seed": seed,
        "device": "cpu",
    }
