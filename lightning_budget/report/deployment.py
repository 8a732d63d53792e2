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
) -> list[Deployment]:
    """Every budget × policy; the factual spend is true where the truth is known, else read off the EOM curves."""
    found: dict[str, list[Deployment]] = {}
    for name, p in policies.items():
        found[name] = []
        for b, price in enumerate(_multipliers(p, budgets).tolist()):
            arm = policy_treatment(p.value, p.cost, price)
            share = torch.bincount(arm, minlength=schema.num_treatments).double() / len(arm)
            factual = curves[name].at_multiplier(price).spend if truth is None else _mean_cost(truth[1], arm)
            found[name].append(
                Deployment(
                    fraction=fractions[b],
                    budget=float(budgets[b]),
                    method=name,
                    multiplier=price if math.isfinite(price) else None,
                    predicted_spend=float(_mean_cost(p.cost, arm)),
                    factual_spend=float(factual),
                    factual_source="hajek" if truth is None else "true",
                    share=dict(zip(schema.treatments, share.tolist(), strict=True)),
                )
            )
    return [found[name][b] for b in range(len(fractions)) for name in found]


def _multipliers(prediction: ResponsePrediction, budgets: Tensor) -> Tensor:
    """Multipliers ``[B]``; +inf, everyone at the cheapest arm, where a budget cannot be met on predicted cost."""
    least = float(prediction.cost.double().amin(1).mean())
    feasible = budgets > least + 1e-12 * abs(least)
    multipliers = torch.full_like(budgets, torch.inf)
    if bool(feasible.any()):
        multipliers[feasible] = solve_multipliers(prediction.value, prediction.cost, budgets[feasible])
    return multipliers


def _mean_cost(cost: Tensor, arm: Tensor) -> Tensor:
    return cost.gather(1, arm[:, None]).double().mean()
