"""Tail probabilities in float64, and the correction for many tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ALPHA = 1e-3
"""A check warns where a probability is below this after correction: one sound trial in a thousand does."""


SERIES_FROM, SERIES_TO = 20.0, 1000.0


def chi_square_p(statistic: Tensor, df: Tensor | float) -> Tensor:
    """P(χ²_df ≥ statistic) = Q(df / 2, statistic / 2), the regularised incomplete gamma function; 1 where df is 0.

    Args:
        statistic: any shape; below 0 counts as 0.
        df: degrees of freedom ≥ 0, not necessarily whole; of the same shape or one number.

    Returns:
        float64 of the shape of ``statistic``.
    """
    x = statistic.double().clamp(min=0)
    degrees = torch.as_tensor(df, dtype=torch.float64, device=x.device).expand_as(x)
    p = _upper_gamma(degrees.clamp(min=1e-300) / 2, x / 2)
    return torch.where(degrees > 0, p, torch.ones_like(p))


def _upper_gamma(a: Tensor, x: Tensor) -> Tensor:
    """Q(a, x) to 1e-9: beyond a = 20 torch's series alone is off by up to 2e-9, so it is stepped up from there.

    Q(a, x) = Q(a − m, x) + Σ_{k = 1..m} x^(a − k) e^(−x) / Γ(a − k + 1), all of it positive.
    """
    steps = torch.where(a <= SERIES_TO, (a - SERIES_FROM).ceil().clamp(min=0), torch.zeros_like(a))
    k = torch.arange(1, int(steps.max()) + 1 if steps.numel() else 1, dtype=torch.float64, device=a.device)
    power = a[..., None] - k
    inside = k <= steps[..., None]
    power = torch.where(inside, power, torch.ones_like(power))
    terms = torch.exp(power * x.clamp(min=1e-300).log()[..., None] - x[..., None] - torch.lgamma(power + 1))
    added = torch.where(inside, terms, torch.zeros_like(terms)).sum(-1)
    return (torch.special.gammaincc(a - steps, x) + added).clamp(max=1)


def two_sided_p(z: Tensor) -> Tensor:
    """Probability that a standard normal is at least as far from 0 as ``z``; float64 of its shape."""
    return torch.special.erfc(z.double().abs() / math.sqrt(2))


def bonferroni(p: Tensor, tests: int) -> Tensor:
    """min(1, tests · p): holds under any dependence of the tests."""
    return (p * tests).clamp(max=1)
