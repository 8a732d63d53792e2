"""Value, spend and return of every method under every budget, on one split of a randomized trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import (
    CostCurve,
    cost_curve,
    percentile_interval,
    policy_curve,
    uniform_curve,
    uniform_true_curve,
)
from lightning_budget.metrics.functional.checks import Normalization
from lightning_budget.report.deployment import deployments
from lightning_budget.report.paired import bootstrap, differences
from lightning_budget.report.progress import Tracker, untracked
from lightning_budget.report.results import CONTROL, LEVEL, ORACLE, UNIFORM, Band, Curve, Outcome, Report, Row, Truth
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable

CURVE_POINTS = 400


@dataclass(frozen=True)
class Comparison:
    """A report, and what it was read off.

    Attributes:
        report: budgets × methods.
        curves: kind (``eom_hajek``, ``eom_ipw`` and, where known, ``true``) to method to its whole curve.
        bands: one per prediction, if they were asked for.
    """

    report: Report
    curves: dict[str, dict[str, CostCurve]]
    bands: list[Band]


def compare(
    table: RCTTable,
    schema: DataSchema,
    predictions: Mapping[str, ResponsePrediction],
    fractions: Sequence[float],
    free_spend: float | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> Report:
    """Judge the allocations that predictions lead to, against control, uniform random and, where known, the optimum.

    A method at budget b is its policy argmax_j v̂_ij − λ ĉ_ij with λ where the *factual* spend is b, so that all methods
    spend the same: on true means where the table has them, and as estimated on the trial (EOM) always.

    Args:
        table: N rows of a randomized trial; a row of sample weight 2 counts as two.
        schema: names of its K arms and units.
        predictions: method name to predicted ``[N, K]`` value and cost of the rows of ``table``.
        fractions: B budgets as fractions of the free spend, each above 0.
        free_spend: currency per user; if ``None`` that of the optimum without a budget or, without an oracle, the
            Hájek mean cost of the arm that is worth most on average among those that cost anything.
        resamples: R of the Poisson bootstrap over users.
        seed: of the bootstrap; all methods share its resamples.

    Raises:
        InputError: on no or misshapen predictions, a reserved method name, fractions or a free spend not above 0, or
            rows that the metrics refuse.
    """
    return analyse(table, schema, predictions, fractions, free_spend, resamples, seed).report


@torch.no_grad()
def analyse(
    table: RCTTable,
    schema: DataSchema,
    predictions: Mapping[str, ResponsePrediction],
    fractions: Sequence[float],
    free_spend: float | None = None,
    resamples: int = 200,
    seed: int = 0,
    band_budgets: int = 0,
    track: Tracker = untracked,
) -> Comparison:
    """As :func:`compare`, with the whole curves and bands around them.

    Args:
        band_budgets: budgets of a band, evenly spaced up to 1.1 times the largest one; 0 for no bands. The resamples
            are those of the intervals.
        track: passed over the bootstrap's methods, as ``rich.progress.track`` is.
    """
    fractions = [float(f) for f in fractions]
    check_request(predictions, fractions, resamples)
    _check_predictions(table, schema, predictions)
    methods = {name: ResponsePrediction(p.value.cpu(), p.cost.cpu()) for name, p in predictions.items()}
    truth = _truth(table)
    policies = methods if truth is None else {**methods, ORACLE: ResponsePrediction(*truth)}
    curves = {"eom_hajek": _eom_curves(table, policies, "hajek"), "eom_ipw": _eom_curves(table, policies, "ipw")}
    if truth is not None:
        curves["true"] = _true_curves(truth, policies, table.weight)
    if free_spend is None:
        free_spend, source = _free_spend(table, schema, curves["true"][ORACLE] if truth else None)
    else:
        source = "given"
    if not (math.isfinite(free_spend) and free_spend > 0):
        raise InputError(f"a free spend of {free_spend:g} per user", "above 0", "check the cost column, or give it")
    budgets = torch.tensor(fractions, dtype=torch.float64) * free_spend
    steps = torch.arange(1, band_budgets + 1, dtype=torch.float64) / max(band_budgets, 1)
    grid = steps * 1.1 * budgets.max()

    drawn = bootstrap(table, methods, torch.cat([budgets, grid]), resamples, seed, track)
    samples = {name: x[:, : len(budgets)] for name, x in drawn.items()}
    users = table.user.unique().numel()
    count = torch.ones(len(table)) if table.weight is None else table.weight
    counts = torch.bincount(table.treatment, count.double(), minlength=schema.num_treatments)
    report = Report(
        row_count=len(table),
        user_count=users,
        arm_share=dict(zip(schema.treatments, (counts / counts.sum()).tolist(), strict=True)),
        value_unit=schema.value_unit,
        cost_unit=schema.cost_unit,
        fractions=fractions,
        budgets=budgets.tolist(),
        free_spend=free_spend,
        free_spend_source=source,
        has_oracle=truth is not None,
        resamples=resamples,
        seed=seed,
        level=LEVEL,
        methods=list(methods),
        rows=_rows(curves, fractions, budgets, samples),
        differences=differences(table, methods, curves["eom_hajek"], truth, budgets, samples, seed, track),
        deployments=deployments(policies, schema, truth, curves["eom_hajek"], fractions, budgets, table.weight),
        curves=[
            _thin(name, kind, curve) for kind in curves if kind != "eom_ipw" for name, curve in curves[kind].items()
        ],
    )
    bands = [
        _band(name, curves["eom_hajek"][name], grid, x[:, len(budgets) :]) for name, x in drawn.items() if len(grid)
    ]
    return Comparison(report, curves, bands)


def check_request(names: Iterable[str], fractions: Sequence[float], resamples: int) -> None:
    """Refuse what can be refused before anything is predicted.

    Raises:
        InputError: on no method or a reserved name, fractions not above 0, or resamples below 1.
    """
    if resamples < 1:
        raise InputError(f"resamples={resamples}", "at least 1", "200 give an interval, 1000 a smooth one")
    if not fractions or not all(math.isfinite(f) and f > 0 for f in fractions):
        raise InputError(
            f"budget fractions {fractions}", "at least one, each above 0", "give fractions of the free spend"
        )
    names = list(names)
    if not names:
        raise InputError("no predictions", "at least one method", "predict the rows of the table")
    for name in names:
        if name in (CONTROL, UNIFORM, ORACLE):
            raise InputError(f"a method named {name!r}", "any other name", "rename it")


def _check_predictions(table: RCTTable, schema: DataSchema, predictions: Mapping[str, ResponsePrediction]) -> None:
    shape = (len(table), schema.num_treatments)
    for name, prediction in predictions.items():
        for what, matrix in (("value", prediction.value), ("cost", prediction.cost)):
            if tuple(matrix.shape) != shape:
                raise InputError(
                    f"{what} predicted by {name!r} has shape {list(matrix.shape)}",
                    f"{list(shape)}, a row per row of the table and a column per arm",
                    "predict the rows of this table",
                )
            if not bool(torch.isfinite(matrix).all()):
                raise InputError(
                    f"{int((~torch.isfinite(matrix)).sum())} entries of {what} predicted by {name!r} are not finite",
                    "finite numbers",
                    "train with a smaller learning rate",
                )


def _truth(table: RCTTable) -> Truth | None:
    if table.true_value is None or table.true_cost is None:
        return None
    return table.true_value, table.true_cost


def _eom_curves(
    table: RCTTable, policies: Mapping[str, ResponsePrediction], normalization: Normalization
) -> dict[str, CostCurve]:
    logged, weight = (table.treatment, table.value, table.cost, table.propensity), table.weight
    arms = next(iter(policies.values())).value.shape[1]
    curves = {UNIFORM: uniform_curve(*logged, arms, normalization, weight)}
    return curves | {n: cost_curve(p.value, p.cost, *logged, normalization, weight) for n, p in policies.items()}


def _true_curves(
    truth: Truth, policies: Mapping[str, ResponsePrediction], weight: Tensor | None
) -> dict[str, CostCurve]:
    curves = {UNIFORM: uniform_true_curve(*truth, weight)}
    return curves | {n: policy_curve(p.value, p.cost, *truth, weight) for n, p in policies.items()}


def arm_means(table: RCTTable, arms: int) -> tuple[Tensor, Tensor]:
    """Hájek means ``[K]`` of value and of cost under each arm; NaN where an arm has no rows."""
    weight = (1 if table.weight is None else table.weight.double()) / table.propensity.double()

    def means(outcome: Tensor) -> Tensor:
        total = weight.new_zeros(2, arms)
        total.index_add_(1, table.treatment, torch.stack([weight * outcome.double(), weight]))
        return total[0] / total[1]

    return means(table.value), means(table.cost)


def most_valuable_arm(value: Tensor, cost: Tensor) -> int:
    """The most valuable on average of the arms that cost anything, from means ``[K]``."""
    return int(torch.where(cost > 0, value, -torch.inf).argmax())


def _free_spend(table: RCTTable, schema: DataSchema, optimum: CostCurve | None) -> tuple[float, str]:
    if optimum is not None:
        return float(optimum.spend[-1]), "spend of the true optimum without a budget"
    value, cost = arm_means(table, schema.num_treatments)
    arm = most_valuable_arm(value, cost)
    return float(cost[arm]), f"mean cost of {schema.treatments[arm]!r}, the most valuable of the arms with a cost"


def _rows(
    curves: Mapping[str, Mapping[str, CostCurve]],
    fractions: list[float],
    budgets: Tensor,
    samples: Mapping[str, Tensor],
) -> list[Row]:
    outcomes = {kind: _outcomes(by_name, budgets) for kind, by_name in curves.items()}
    for name, drawn in samples.items():
        low, high = (end.tolist() for end in percentile_interval(drawn, LEVEL))
        points = outcomes["eom_hajek"][name]
        outcomes["eom_hajek"][name] = [Outcome(p.value, p.spend, p.roi, low[b], high[b]) for b, p in enumerate(points)]
    if "true" in outcomes:
        best = [p.value for p in outcomes["true"][ORACLE]]
        for name, points in outcomes["true"].items():
            outcomes["true"][name] = [
                Outcome(p.value, p.spend, p.roi, regret=best[b] - p.value) for b, p in enumerate(points)
            ]
    return [
        Row(fraction, budget, name, **{kind: outcomes[kind][name][b] for kind in outcomes})
        for b, (fraction, budget) in enumerate(zip(fractions, budgets.tolist(), strict=True))
        for name in outcomes["eom_hajek"]
    ]


def _outcomes(curves: Mapping[str, CostCurve], budgets: Tensor) -> dict[str, list[Outcome]]:
    """Control, which is where the uniform policy starts, then every curve, at each budget."""
    control_spend, control_value = float(curves[UNIFORM].spend[0]), float(curves[UNIFORM].value[0])
    outcomes = {CONTROL: [Outcome(control_value, control_spend, None) for _ in budgets]}
    for name, curve in curves.items():
        point = curve.at_budget(budgets)
        outcomes[name] = [
            Outcome(v, c, (v - control_value) / (c - control_spend) if c > control_spend else None)
            for v, c in zip(point.value.tolist(), point.spend.tolist(), strict=True)
        ]
    return outcomes


def _band(method: str, curve: CostCurve, grid: Tensor, samples: Tensor) -> Band:
    ends = percentile_interval(samples, LEVEL)
    return Band(method, *(x.tolist() for x in (grid, curve.at_budget(grid).value, *ends)))


def thinned(curve: CostCurve, points: int) -> Tensor:
    """Which points stay of a curve of more than ``points``: the ends, and some evenly spaced along the spend travelled.

    Returns:
        Ascending positions ``[m]``, m ≤ ``points``.
    """
    travelled = torch.cat([curve.spend.new_zeros(1), curve.spend.diff().abs().cumsum(0)])
    marks = torch.linspace(0, 1, points - 1, dtype=torch.float64) * travelled[-1]
    # The last of the points at one spend, so that an end that only gains value is kept.
    index = torch.searchsorted(travelled, marks, right=True).sub(1).clamp(0, len(travelled) - 1)
    return torch.cat([index.new_zeros(1), index[:-1], index.new_tensor([len(travelled) - 1])]).unique()


def _thin(method: str, kind: str, curve: CostCurve) -> Curve:
    index = thinned(curve, CURVE_POINTS)
    return Curve(method, kind, *([float(f"{x:.7g}") for x in c[index].tolist()] for c in (curve.spend, curve.value)))
