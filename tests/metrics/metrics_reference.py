"""Slow and plain: one loop per definition, and random trials to compare on."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import torch


def policy(value, cost, multiplier):
    """argmax v − λc by exact comparison; ties to the cheaper arm, then to the lower index."""
    chosen = []
    for v, c in zip(value.tolist(), cost.tolist(), strict=True):
        if multiplier == math.inf:
            chosen.append(min(range(len(v)), key=lambda j: (c[j], -v[j], j)))
        else:
            exact = [Fraction(a) - Fraction(multiplier) * Fraction(b) for a, b in zip(v, c, strict=True)]
            chosen.append(min(range(len(v)), key=lambda j: (-exact[j], c[j], j)))
    return np.array(chosen)


def breakpoints(value, cost):
    """All multipliers > 0 at which two arms of one user tie, falling."""
    found = set()
    for v, c in zip(value.tolist(), cost.tolist(), strict=True):
        pairs = [(j, k) for j in range(len(v)) for k in range(len(v)) if c[j] > c[k] and v[j] > v[k]]
        found |= {(Fraction(v[j]) - Fraction(v[k])) / (Fraction(c[j]) - Fraction(c[k])) for j, k in pairs}
    return sorted(found, reverse=True)


def segments(value, cost):
    """One multiplier inside each stretch between breakpoints, falling, +inf first and 0 last."""
    points = [*breakpoints(value, cost), Fraction(0)]
    return [math.inf, *((a + b) / 2 for a, b in itertools.pairwise(points)), Fraction(0)]


def estimate(value_hat, cost_hat, trial, multiplier, normalization):
    """EOM at one multiplier: (spend, value), or None where hajek has no matched row."""
    matched = policy(value_hat, cost_hat, multiplier) == trial["treatment"].numpy()
    weight = matched / trial["propensity"].double().numpy()
    mass = weight.sum() if normalization == "hajek" else len(matched)
    if mass == 0:
        return None
    return tuple(float((weight * trial[k].double().numpy()).sum() / mass) for k in ("cost", "value"))


def walk_to(points, budget):
    """First crossing of the budget along a list of (spend, value) that starts at +inf."""
    previous = points[0]
    if previous[0] > budget:
        return previous
    for spend, value in points[1:]:
        if spend > budget:
            share = (budget - previous[0]) / (spend - previous[0])
            return budget, previous[1] + share * (value - previous[1])
        previous = (spend, value)
    return previous


def predictions(generator, users, arms, integers):
    """Random predictions; small integers give equal costs, zero costs, ties within and between users."""
    if integers:
        value = torch.randint(-2, 6, (users, arms), generator=generator).double()
        cost = torch.randint(0, 4, (users, arms), generator=generator).double()
        return value, cost
    value = torch.randn(users, arms, generator=generator, dtype=torch.float64).cumsum(1)
    return value, torch.rand(users, arms, generator=generator, dtype=torch.float64).cumsum(1)


def random_trial(generator, users, arms):
    """Unequal propensities that differ between users; outcomes unrelated to anything."""
    raw = torch.rand(users, arms, generator=generator, dtype=torch.float64) + 0.1
    probability = raw / raw.sum(1, keepdim=True)
    treatment = torch.multinomial(probability, 1, generator=generator)
    return {
        "treatment": treatment[:, 0],
        "value": torch.randn(users, generator=generator, dtype=torch.float64),
        "cost": torch.rand(users, generator=generator, dtype=torch.float64),
        "propensity": probability.gather(1, treatment)[:, 0],
    }


def rng(seed):
    return torch.Generator().manual_seed(seed)
