"""Criteo-MT7: eight discount tiers with known expected outcomes, on the features of real users.

Features x are z-scored (a standard deviation below 1e-8 counts as 1) and clipped to ±8. Arms are control and discounts
of 2, 4, …, 14 %, drawn uniformly; the dose is d = percent / 14. With unit directions β, δ, α, γ of one seed, δ leaning
against β (ρ = 0.6: whom a discount makes buy, it makes spend less)::

    logit P(buy)                = (−2.4 + 0.6 x·α) + (0.6 + 0.4 x·β) d
    mean of the log of a basket = ( 6.0 + 0.3 x·γ) + (−0.05 + 0.25 x·δ) d,  standard deviation σ = 0.8
    value = 1[buy] · basket,  cost = percent / 100 · value
    E[value] = P(buy) exp(mean + σ² / 2),  E[cost] = percent / 100 · E[value]

On features of another source than Criteo's the trial is another one, and has another name.

Source: Zhang et al. 2026 (FunnelCausalNet), arXiv 2608.11675.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PERCENT = (0, 2, 4, 6, 8, 10, 12, 14)
ARMS = ("control", *(f"off_{p}" for p in PERCENT[1:]))
CLIP = 8.0
MIN_SD = 1e-8


@dataclass(frozen=True)
class Directions:
    """Unit vectors ``[D]``: base and sensitivity of buying, base and sensitivity of the basket."""

    alpha: Floats
    beta: Floats
    gamma: Floats
    delta: Floats


@dataclass(frozen=True)
class Surface:
    """Constants of the formulas above.

    Attributes:
        base, base_spread, lift, lift_spread: of the logit of buying.
        log_basket, basket_spread, growth, growth_spread: of the mean log of a basket.
        sigma: standard deviation of the log of a basket.
        conflict: ρ.
    """

    base: float = -2.4
    base_spread: float = 0.6
    lift: float = 0.6
    lift_spread: float = 0.4
    log_basket: float = 6.0
    basket_spread: float = 0.3
    growth: float = -0.05
    growth_spread: float = 0.25
    sigma: float = 0.8
    conflict: float = 0.6

    def directions(self, rng: np.random.Generator, width: int) -> Directions:
        """Draw β, the vector u that δ leans to, α and γ, in this order."""
        beta = _unit(rng.normal(size=width))
        u = rng.normal(size=width)
        u = _unit(u - (u @ beta) * beta)
        delta = _unit(-self.conflict * beta + np.sqrt(1 - self.conflict**2) * u)
        alpha = _unit(rng.normal(size=width))
        return Directions(alpha, beta, _unit(rng.normal(size=width)), delta)

    def buying(self, x: Floats, to: Directions) -> Floats:
        """``[N, K]`` probabilities of buying under every arm."""
        logit = (self.base + self.base_spread * (x @ to.alpha))[:, None]
        slope = (self.lift + self.lift_spread * (x @ to.beta))[:, None]
        return 1 / (1 + np.exp(-(logit + slope * _doses())))

    def log_mean(self, x: Floats, to: Directions) -> Floats:
        """``[N, K]`` mean of the log of a basket under every arm."""
        level = (self.log_basket + self.basket_spread * (x @ to.gamma))[:, None]
        slope = (self.growth + self.growth_spread * (x @ to.delta))[:, None]
        return level + slope * _doses()

    def expected(self, x: Floats, to: Directions) -> tuple[Floats, Floats]:
        """``[N, K]`` expected value and cost under every arm: what an oracle knows."""
        value = self.buying(x, to) * np.exp(self.log_mean(x, to) + self.sigma**2 / 2)
        return value, value * np.array(PERCENT) / 100


@dataclass(frozen=True)
class Draws:
    """The random part of the trial, ``[N]`` each: arm, a uniform number that decides on buying, noise of the basket."""

    arm: NDArray[np.int64]
    uniform: Floats
    noise: Floats


def draws(rng: np.random.Generator, rows: int, sigma: float) -> Draws:
    """Arm, uniform and noise of all rows, in this order."""
    return Draws(rng.integers(0, len(PERCENT), rows), rng.random(rows), rng.normal(0, sigma, rows))


def observed(
    x: Floats, to: Directions, surface: Surface, drawn: Draws, rows: slice
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """``[n]`` buying, value and cost of the rows of a slice, whose features are ``x`` (``[n, D]``)."""
    arm, i = drawn.arm[rows], np.arange(len(x))
    buys = drawn.uniform[rows] < surface.buying(x, to)[i, arm]
    value = buys.astype(np.float64) * np.exp(surface.log_mean(x, to)[i, arm] + drawn.noise[rows])
    return buys, value, value * np.array(PERCENT)[arm] / 100


def standardized(x: Floats) -> Floats:
    """``[N, D]`` z-scores, clipped."""
    sd = x.std(0)
    return np.clip((x - x.mean(0)) / np.where(sd > MIN_SD, sd, 1.0), -CLIP, CLIP)


def sample_rows(rng: np.random.Generator, rows: int, wanted: int) -> NDArray[np.int64]:
    """Numbers of ``wanted`` of the rows, without replacement, in order; all of them where there are no more."""
    return np.sort(rng.choice(rows, wanted, replace=False)) if wanted < rows else np.arange(rows)


def _doses() -> Floats:
    return np.array(PERCENT) / PERCENT[-1]


def _unit(v: Floats) -> Floats:
    return v / np.linalg.norm(v)
