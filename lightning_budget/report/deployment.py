"""What would be served: the multiplier is solved on predicted cost, the spend is the factual one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_budget.allocation import policy_treatment, solve_multipliers
from lightning_budget.batch import ResponsePrediction
from lightning_budget.metrics.functional import CostCurve
from lightning_budget.report.results import Deployment, Truth
from lightning_budget.schema import DataSchema


def deployments(
    policies: Mapping[str, ResponsePrediction],
    schema: DataSchema,
    truth: Truth | None,
    curves: Mapping[str, CostCurve],
    fractions: list[float],
    budgets: Tensor,
    weight: Tensor | None = None,
) -> list[Deployment]:
    """Every budget × policy; the factual spend is true where the truth is known, else read off the EOM curves.

    A user of weight 2 (``weight`` is ``[N]``) counts as two.
    """
    first = next(iter(policies.values())).value
    users = (torch.ones(len(first)) if weight is None else weight).double()
    found: dict[str, list[Deployment]] = {}
    for name, p in policies.items():
        found[name] = []
        for b, price in enumerate(_multipliers(p, budgets, weight).tolist()):
            arm = _served(p, price)
            counts = torch.bincount(arm, users, minlength=schema.num_treatments)
            factual = curves[name].at_multiplier(price).spend if truth is None else _mean_cost(truth[1], arm, weight)
            found[name].append(
                Deployment(
                    fraction=fractions[b],
                    budget=float(budgets[b]),
                    method=name,
                    multiplier=price if math.isfinite(price) else None,
                    predicted_spend=float(_mean_cost(p.cost, arm, weight)),
                    factual_spend=float(factual),
                    factual_source="hajek" if truth is None else "true",
                    share=dict(zip(schema.treatments, (counts / counts.sum()).tolist(), strict=True)),
                )
            )
    return [found[name][b] for b in range(len(fractions)) for name in found]


def _multipliers(prediction: ResponsePrediction, budgets: Tensor, weight: Tensor | None) -> Tensor:
    """Multipliers ``[B]``; +inf, everyone at the cheapest arm, where a budget cannot be met on predicted cost."""
    least = float(_mean(prediction.cost.double().amin(1), weight))
    feasible = budgets > least + 1e-12 * abs(least)
    multipliers = torch.full_like(budgets, torch.inf)
    if not bool(feasible.any()):
        return multipliers
    if weight is None:
        multipliers[feasible] = solve_multipliers(prediction.value, prediction.cost, budgets[feasible])
    else:
        multipliers[feasible] = _weighted_multipliers(prediction, budgets[feasible], weight)
    return multipliers


def _weighted_multipliers(prediction: ResponsePrediction, budgets: Tensor, weight: Tensor) -> Tensor:
    # Scores in another unit make the same choices, and spend in it is the weighted one.
    share = (weight.double() / weight.double().mean())[:, None]
    found = solve_multipliers(prediction.value.double() * share, prediction.cost.double() * share, budgets).tolist()
    for b, budget in enumerate(budgets.tolist()):
        # Rounding of the unit can turn the one user back who is indifferent at the multiplier.
        step = 2.0**-52
        while found[b] > 0 and _spend(prediction, found[b], weight) > budget * (1 + 1e-12):
            found[b], step = found[b] * (1 + step), 2 * step
    return torch.tensor(found, dtype=budgets.dtype)


def _served(prediction: ResponsePrediction, multiplier: float) -> Tensor:
    return policy_treatment(prediction.value, prediction.cost, multiplier)


def _spend(prediction: ResponsePrediction, multiplier: float, weight: Tensor) -> float:
    return float(_mean_cost(prediction.cost, _served(prediction, multiplier), weight))


def _mean_cost(cost: Tensor, arm: Tensor, weight: Tensor | None) -> Tensor:
    return _mean(cost.gather(1, arm[:, None])[:, 0].double(), weight)


def _mean(x: Tensor, weight: Tensor | None) -> Tensor:
    return x.mean() if weight is None else (x * weight.double()).sum() / weight.double().sum()
