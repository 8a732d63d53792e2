"""Draws of the traits of many users of the embedded campaign at once, given their rows: Hamiltonian Monte Carlo.

Source: Neal 2011, MCMC using Hamiltonian dynamics, arXiv:1206.1901. Every user is a chain of their own, with a diagonal
metric from the number of their rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from campaign_traits import SPREAD, Curves, Rows, curves_of, natural, prior_mean, tier_bounds
from torch import Tensor
from torch.nn.functional import softplus

LEAPS, STEP = 3, 0.7


@dataclass(frozen=True)
class Outcomes:
    """Those of n rows of C chains.

    Attributes:
        chain, cell: ``[n]``, whose row it is; chain · K + arm.
        base, sensitivity: ``[n]``, of the purchase logit, the latter no logarithm; bought: ``[n]`` 0 or 1.
        purchases, redeemed, spends: ``[C, K]`` counts and Σ of log spends without the rows' own part.
        face: ``[K]``; sigma: of log spends.
    """

    chain: Tensor
    cell: Tensor
    base: Tensor
    sensitivity: Tensor
    bought: Tensor
    purchases: Tensor
    redeemed: Tensor
    spends: Tensor
    face: Tensor
    sigma: float

    @classmethod
    def of(cls, rows: Rows, index: Tensor, chain: Tensor, chains: int, face: Tensor, sigma: float) -> Outcomes:
        """Those of ``rows`` at ``index``, which belong to ``chain``; both ``[n]``."""
        arm, value = rows.treatment[index], rows.value[index]
        cell, bought = chain * len(face) + arm, (value > 0).float()
        log_spend = torch.where(value > 0, value.clamp(min=1e-30).log() - rows.spend[index], 0.0)

        def by_cell(x: Tensor) -> Tensor:
            return torch.zeros(chains * len(face)).index_add_(0, cell, x).view(chains, len(face))

        return cls(
            *(chain, cell, rows.base[index], rows.sensitivity[index].exp(), bought),
            *(by_cell(bought), by_cell((rows.cost[index] > 0).float()), by_cell(log_spend)),
            *(face, sigma),
        )

    def log_likelihood(self, z: Tensor) -> Tensor:
        """``[C]``, up to a sum without traits ``z`` (``[C, 6]``)."""
        c = curves_of(z, self.face)
        spend = c.log_spend * (self.spends - self.purchases * c.log_spend / 2)
        redeem = self.redeemed * c.redeem - self.purchases * softplus(c.redeem)
        # Control has no coupon to redeem.
        rest = spend.sum(1) / self.sigma**2 + (redeem * (self.face > 0)).sum(1)
        return rest.index_add(0, self.chain, self._purchase(c))

    def _purchase(self, c: Curves) -> Tensor:
        dose = c.dose.flatten().index_select(0, self.cell)
        factor, base = c.factor.index_select(0, self.chain), c.base.index_select(0, self.chain)
        logit = self.base + base + (self.sensitivity * factor - 0.3) * dose
        return self.bought * logit - softplus(logit)


@dataclass(frozen=True)
class Posterior:
    """Of C chains.

    Attributes:
        mean: ``[C, 6]`` of the prior.
        low, high: ``[C]``, see ``tier_bounds``.
        sums: ``[C, 6]``, of the features of all rows of a chain.
        outcomes: ``None``: not seen.
    """

    mean: Tensor
    low: Tensor
    high: Tensor
    sums: Tensor
    outcomes: Outcomes | None

    @classmethod
    def of(cls, user: Tensor, users: int, tier: Tensor, sums: Tensor, outcomes: Outcomes | None) -> Posterior:
        """Of the user ``[C]`` of each chain, with their tiers and sums."""
        return cls(prior_mean(user, users), *tier_bounds(tier), sums, outcomes)

    def log_density(self, z: Tensor) -> Tensor:
        """``[C]``, up to a constant, of traits ``z`` (``[C, 6]``)."""
        latent = 0.7 * z[:, 0] + 0.3 * z[:, 2]
        high, low = ((bound - latent) / 0.6 for bound in (self.high, self.low))
        tier = torch.special.ndtr(high) - torch.special.ndtr(low)
        found = (self.sums * natural(z)).sum(1) - 0.5 * ((z - self.mean) / SPREAD).square().sum(1)
        found = found + tier.clamp(min=1e-12).log()
        return found if self.outcomes is None else found + self.outcomes.log_likelihood(z)

    def gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The log density and its gradient ``[C, 6]``."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            density = self.log_density(z)
            (gradient,) = torch.autograd.grad(density.sum(), z)
        return density.detach(), gradient

    @property
    def scale(self) -> Tensor:
        """``[C, 6]``, about the standard deviations of the posterior."""
        # Fisher information of the features of one row, then of one purchase, near the mean of the population.
        information = self.sums[:, :1] * torch.tensor([2.2, 0.95, 1.6, 0.0, 0.0, 0.0])
        if self.outcomes is not None:
            bought = self.outcomes.purchases.sum(1, keepdim=True)
            information = information + bought * torch.tensor([0.5, 0.1, 0.5, 0.1, 0.04, 0.02])
        return 1 / torch.sqrt(1 / SPREAD.square() + information)


@dataclass
class Acceptance:
    """Mean probability with which proposals were accepted."""

    total: float = 0.0
    proposals: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.proposals


def draws(posterior: Posterior, count: int, warm_up: int, seed: int, seen: Acceptance) -> Iterator[Tensor]:
    """``count`` times the traits ``[C, 6]`` of all chains, after ``warm_up``; ``seen`` is added to."""
    generator = torch.Generator().manual_seed(seed)
    scale, z = posterior.scale, posterior.mean
    density, gradient = posterior.gradient(z)
    for i in range(warm_up + count):
        momentum = torch.randn(z.shape, generator=generator)
        step = STEP * (0.8 + 0.4 * float(torch.rand((), generator=generator))) * scale
        energy = density - 0.5 * momentum.square().sum(1)
        there, slope, new = z, gradient, density
        for _ in range(LEAPS):
            momentum = momentum + 0.5 * step * slope
            there = there + step * momentum
            new, slope = posterior.gradient(there)
            momentum = momentum + 0.5 * step * slope
        ratio = (new - 0.5 * momentum.square().sum(1) - energy).exp().clamp(max=1).nan_to_num(0.0)
        moved = torch.rand(len(z), generator=generator) < ratio
        z, gradient = (torch.where(moved[:, None], a, b) for a, b in ((there, z), (slope, gradient)))
        density = torch.where(moved, new, density)
        if i >= warm_up:
            seen.total, seen.proposals = seen.total + float(ratio.mean()), seen.proposals + 1
            yield z
