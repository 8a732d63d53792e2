"""Small trials in float64, and the marketing goal written as its definition reads, for autograd to differentiate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import torch
from random_trials import random_batch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.gains import Weighting

WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
SMOOTHINGS = ("softmax", "gaussian")
"""Estimators whose gradient is that of a smoothed goal, without sampling."""
BASELINES = ("none", "centred")
SWITCHES = [(w, b) for w in WEIGHTINGS for b in BASELINES]
Choice = Callable[[Tensor], Tensor]
"""Smoothed allocation ``[N, K]`` of scores ``[N, K]``."""


@dataclass(frozen=True)
class Rows:
    """Outcomes of a trial alone."""

    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor
    weight: Tensor | None = None

    def __len__(self) -> int:
        return len(self.treatment)


def trial(rows: int, treatments: int, seed: int = 0) -> tuple[RCTBatch, ResponsePrediction, ResponsePrediction]:
    """Random rows, a prediction that wants gradients, and a baseline, all float64."""
    batch, g = random_batch(rows, treatments, seed), torch.Generator().manual_seed(seed + 100)
    batch = replace(batch, **{n: getattr(batch, n).double() for n in ("value", "cost", "propensity")})
    value, cost, model_value, model_cost = torch.rand(4, rows, treatments, generator=g, dtype=torch.float64)
    prediction = ResponsePrediction((3 * value).requires_grad_(), cost.clone().requires_grad_())
    return batch, prediction, ResponsePrediction(4 * model_value, model_cost)


def informative_trial(users: int) -> tuple[Rows, ResponsePrediction, ResponsePrediction]:
    """Dearer arms are worth more, and predictions are half right."""
    g = torch.Generator().manual_seed(2)
    dose = torch.arange(4, dtype=torch.float64)
    taste = torch.rand(users, 1, generator=g, dtype=torch.float64)
    value, cost = 1 + 2 * taste * dose.sqrt(), 0.5 * dose.expand(users, -1)
    given = torch.randint(0, 4, (users,), generator=g)
    noise = 0.2 * torch.randn(4, users, generator=g, dtype=torch.float64)
    own = torch.arange(users)
    rows = Rows(
        given,
        value[own, given] + noise[0],
        cost[own, given] * (1 + noise[1]),
        0.2 + 0.1 * torch.rand(users, generator=g, dtype=torch.float64),
    )
    off = 0.3 * torch.randn(2, users, 4, generator=g, dtype=torch.float64)
    return rows, ResponsePrediction(value + off[0], cost * (1 + off[1])), ResponsePrediction(value, 0.9 * cost)


def estimated_outcome(
    q: Tensor,
    batch: RCTBatch | Rows,
    weighting: str,
    y: Tensor,
    model: Tensor | None = None,
    centred: bool = False,
) -> Tensor:
    """Outcome per user of an allocation ``[N, K]`` on a trial, by weighting; ``model`` ``[N, K]`` of doubly_robust."""
    users, arms = torch.arange(len(batch)), range(q.shape[1])
    t, p = batch.treatment, batch.propensity
    base = torch.zeros_like(q.detach())
    if weighting == "doubly_robust":
        assert model is not None
        base = model.clone()
    if centred:
        left = (y - base[users, t]) / p
        for j in arms:
            given = t == j
            if given.any():
                base[:, j] += left[given].sum() / (1 / p[given]).sum()
    matched, left = q[users, t], y - base[users, t]
    if weighting == "hajek":
        return (q * base).sum(1).mean() + (matched / p * left).sum() / (matched / p).sum()
    if weighting == "poststratified":
        total = q.new_zeros(())
        for j in arms:
            given = t == j
            if given.any():
                total = total + q[:, j].mean() * (q[given, j] * y[given]).sum() / q[given, j].sum()
        return total
    return (q * base).sum(1).mean() + (matched / p * left).mean()


def choice(name: str, width: float) -> Choice:
    """The smoothing of an estimator by name, differentiable."""
    if name == "softmax":
        return lambda a: torch.softmax(a / width, dim=1)
    if name == "gaussian":
        return lambda a: _probit(a / width)
    raise AssertionError(f"no reference for {name}")


def _probit(a: Tensor) -> Tensor:
    """Chance that each of a user's scores with N(0, 1) noise is the largest, on a fine grid."""
    x, step = torch.linspace(-9, 9, 1501, dtype=a.dtype), 18 / 1500
    best = a.detach().amax(1, keepdim=True)
    ahead = x - (a - best)[:, :, None]
    below, density = torch.special.ndtr(ahead), torch.exp(-ahead.square() / 2) / (2 * torch.pi) ** 0.5
    arms = range(a.shape[1])
    others = [torch.stack([below[:, k] for k in arms if k != j]).prod(0) if len(arms) > 1 else 1.0 for j in arms]
    return torch.stack([(density[:, j] * others[j]).sum(1) * step for j in arms], dim=1)
