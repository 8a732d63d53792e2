"""What arms earn over control, and how much of what can be gained each curve has."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

from lightning_budget.errors import InputError
from lightning_budget.evaluation.results import Area, Curves, Increment, known
from lightning_budget.metrics.functional import CostCurve, increments, normalized_area
from lightning_budget.report.compute import arm_means, most_valuable_arm
from lightning_budget.report.results import LEVEL, ORACLE, UNIFORM
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable


def arm_increments(table: RCTTable, schema: DataSchema) -> list[Increment]:
    """Every arm against control, users being independent; none where an arm has fewer than two users."""
    columns = (table.treatment, table.value, table.cost, table.propensity)
    try:
        found = increments(*columns, schema.num_treatments, user=table.user, level=LEVEL, weight=table.weight)
    except InputError:
        # The columns are those of the curves, which are made: what is left is an arm without spread.
        return []
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    gains = []
    for j, arm in enumerate(schema.treatments[1:]):
        value, value_error, cost, cost_error = (
            float(x[j]) for x in (found.value, found.value_error, found.cost, found.cost_error)
        )
        ends = (value - z * value_error, value + z * value_error), (cost - z * cost_error, cost + z * cost_error)
        roi = (known(float(x[j])) for x in (found.roi, found.roi_low, found.roi_high))
        gains.append(Increment(arm, value, value_error, *ends[0], cost, cost_error, *ends[1], *roi))
    return gains


def areas(table: RCTTable, schema: DataSchema, curves: Curves, free_spend: float) -> list[Area]:
    """Normalised areas over references common to all methods of a kind.

    The base is control. The free value is the optimum's without a budget where the truth is known, else the mean of the
    most valuable of the arms with a cost: to give that arm to a random share of the users then has ½.
    """
    found = []
    for kind in ("true", "eom_hajek"):
        if kind in curves:
            found += _areas(kind, curves[kind], free_spend, _free_value(table, schema, curves[kind]))
    return found


def _free_value(table: RCTTable, schema: DataSchema, curves: Mapping[str, CostCurve]) -> float:
    if ORACLE in curves:
        return float(curves[ORACLE].value[-1])
    value, cost = arm_means(table, schema.num_treatments)
    return float(value[most_valuable_arm(value, cost)])


def _areas(kind: str, curves: Mapping[str, CostCurve], free_spend: float, free_value: float) -> list[Area]:
    base = float(curves[UNIFORM].value[0])

    def area(curve: CostCurve) -> float | None:
        return float(normalized_area(curve, free_spend, base, free_value)) if free_value > base else None

    return [Area(name, kind, area(curve), free_spend, base, free_value) for name, curve in curves.items()]
