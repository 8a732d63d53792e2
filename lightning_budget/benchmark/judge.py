"""What the predictions of the selected trial earn on test."""

from __future__ import annotations

from typing import Any

import torch

from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import aucc
from lightning_budget.report import compare
from lightning_budget.report.results import CONTROL, ORACLE, UNIFORM
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable

OWN = "method"
"""The method itself among the policies of a cell."""


@torch.no_grad()
def judge(
    test: RCTTable, schema: DataSchema, prediction: ResponsePrediction, fractions: tuple[float, ...], resamples: int
) -> dict[str, Any]:
    """Plain numbers: budgets, and under ``policies`` what control, uniform, the method and the oracle earn at each.

    Each policy has ``eom_hajek`` (with ``low`` and ``high`` where there is an interval) and, where the truth is known,
    ``true``: value units per user at each budget of the factual (else true) spend. ``aucc`` is of data sets with two
    arms, ``None`` where it is not defined.
    """
    report = compare(test, schema, {OWN: prediction}, fractions, resamples=resamples)
    policies: dict[str, dict[str, list[float | None]]] = {}
    for name in (CONTROL, UNIFORM, OWN, *([ORACLE] if report.has_oracle else [])):
        rows = [row for row in report.rows if row.method == name]
        of: dict[str, list[float | None]] = {"eom_hajek": [row.eom_hajek.value for row in rows]}
        if rows[0].eom_hajek.low is not None:
            of |= {"low": [row.eom_hajek.low for row in rows], "high": [row.eom_hajek.high for row in rows]}
        if report.has_oracle:
            of["true"] = [row.true.value for row in rows if row.true is not None]
        policies[name] = of
    return {
        "value_unit": schema.value_unit,
        "cost_unit": schema.cost_unit,
        "arms": schema.num_treatments,
        "has_oracle": report.has_oracle,
        "resamples": resamples,
        "fractions": report.fractions,
        "budgets": report.budgets,
        "free_spend": report.free_spend,
        "policies": policies,
        "aucc": _aucc(test, prediction) if schema.num_treatments == 2 else None,
    }


def _aucc(test: RCTTable, prediction: ResponsePrediction) -> float | None:
    gains = {f"{k}_gain_hat": (x := getattr(prediction, k))[:, 1] - x[:, 0] for k in ("value", "cost")}
    weight = 1 / test.propensity if test.weight is None else test.weight / test.propensity
    try:
        return float(aucc(test.treatment, test.value, test.cost, **gains, weight=weight))
    except InputError:
        # Of a sample in which the arm seems to earn or cost nothing.
        return None
