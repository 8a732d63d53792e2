"""AUCC, AUUC and Qini of every method for every arm against control, and paired differences to a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.evaluation.results import Paired, Ranking, RankingDifference, known
from lightning_budget.metrics.functional import (
    aucc,
    auuc,
    bootstrap_aucc,
    bootstrap_uplift,
    percentile_interval,
    predicted_roi,
    qini,
)
from lightning_budget.report.paired import baseline_of
from lightning_budget.report.progress import Tracker, untracked
from lightning_budget.report.results import LEVEL
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable

MIN_RESAMPLES = 50
MEASURES: tuple[str, ...] = ("aucc", "auuc", "qini")


def rankings(
    table: RCTTable,
    schema: DataSchema,
    predictions: Mapping[str, ResponsePrediction],
    resamples: int,
    seed: int,
    track: Tracker = untracked,
) -> tuple[list[Ranking], list[RankingDifference]]:
    """Every method × arm, rows weighted by 1 / p, and every method minus the baseline, on common resamples of users.

    No interval and no difference for fewer than 50 resamples, which are too few for one.
    """
    baseline = baseline_of(predictions)
    resamples = 0 if resamples < MIN_RESAMPLES else resamples
    found: dict[str, list[Ranking]] = {name: [] for name in predictions}
    differences: dict[str, list[RankingDifference]] = {name: [] for name in predictions}
    arms = list(enumerate(schema.treatments[1:], 1))
    for j, arm in track(arms, "Rankings"):
        measured = _measure(_pair(table, j), predictions, resamples, seed)
        for name, m in measured.items():
            found[name].append(_ranking(name, arm, m))
            if resamples and name != baseline:
                paired = (_paired(m.estimate[k] - b, m.samples[k] - s) for k, b, s in measured[baseline].each())
                differences[name].append(RankingDifference(name, baseline, arm, resamples, *paired))
    return [r for of in found.values() for r in of], [d for of in differences.values() for d in of]


@dataclass(frozen=True)
class _Pair:
    """Rows of control and one arm; ``[n]`` each. Weights: 1 / p, the least scaled to 1, times sample weights."""

    arm: int
    row: Tensor
    user: Tensor
    treated: Tensor
    value: Tensor
    cost: Tensor
    weight: Tensor

    def gains(self, predictions: Mapping[str, ResponsePrediction]) -> tuple[Tensor, Tensor]:
        """Predicted gains of value and cost of the arm over control, ``[S, n]`` each."""
        value, cost = (
            torch.stack([(x[self.row, self.arm].double() - x[self.row, 0].double()) for x in of])
            for of in zip(*((p.value, p.cost) for p in predictions.values()), strict=True)
        )
        return value, cost


def _pair(table: RCTTable, arm: int) -> _Pair:
    row = ((table.treatment == 0) | (table.treatment == arm)).nonzero().squeeze(1)
    p = table.propensity[row].double()
    treated = (table.treatment[row] == arm).long()
    weight = p.max() / p if table.weight is None else table.weight[row].double() * p.max() / p
    return _Pair(arm, row, table.user[row], treated, table.value[row], table.cost[row], weight)


@dataclass(frozen=True)
class _Measured:
    """Of one method and arm, by measure: ``estimate``, and ``samples`` ``[R]``; ``normalized`` areas by measure."""

    estimate: dict[str, float]
    normalized: dict[str, float]
    samples: dict[str, Tensor]

    def each(self) -> list[tuple[str, float, Tensor]]:
        return [(k, self.estimate[k], self.samples[k]) for k in MEASURES]


def _measure(
    pair: _Pair, predictions: Mapping[str, ResponsePrediction], resamples: int, seed: int
) -> dict[str, _Measured]:
    """All methods, on the rows as they are and on R resamples."""
    value_gain, cost_gain = pair.gains(predictions)
    roi = torch.stack([predicted_roi(v, c) for v, c in zip(value_gain, cost_gain, strict=True)])
    drawn = torch.empty(len(MEASURES), len(predictions), 0, dtype=torch.float64)
    if resamples:
        with_cost = (pair.user, pair.treated, pair.value, pair.cost)
        cuts = bootstrap_aucc(roi, *with_cost, resamples=resamples, seed=seed, weight=pair.weight)
        areas = bootstrap_uplift(value_gain, *with_cost[:3], resamples=resamples, seed=seed, weight=pair.weight)
        drawn = torch.stack([cuts, *areas])
    found = {}
    for i, name in enumerate(predictions):
        uplift, excess = (f(value_gain[i], pair.treated, pair.value, pair.weight) for f in (auuc, qini))
        # As one weighting of several: what is not defined is NaN instead of an error.
        share = aucc(pair.treated, pair.value, pair.cost, score=roi[i], weight=pair.weight[None])[0]
        estimate = dict(zip(MEASURES, map(float, (share, uplift.area, excess.above_random)), strict=True))
        normalized = {"auuc": float(uplift.normalized), "qini": float(excess.normalized)}
        found[name] = _Measured(estimate, normalized, dict(zip(MEASURES, drawn[:, i], strict=True)))
    return found


def _ranking(method: str, arm: str, m: _Measured) -> Ranking:
    ends = {k: _interval(m.estimate[k], m.samples[k]) for k in MEASURES}
    return Ranking(
        method,
        arm,
        known(m.estimate["aucc"]),
        *ends["aucc"],
        m.estimate["auuc"],
        *ends["auuc"],
        known(m.normalized["auuc"]),
        m.estimate["qini"],
        *ends["qini"],
        known(m.normalized["qini"]),
    )


def _interval(estimate: float, samples: Tensor) -> tuple[float | None, float | None]:
    if len(samples) == 0 or known(estimate) is None or not bool(torch.isfinite(samples).all()):
        return None, None
    low, high = percentile_interval(samples, LEVEL)
    return float(low), float(high)


def _paired(estimate: float, samples: Tensor) -> Paired | None:
    low, high = _interval(estimate, samples)
    return None if low is None or high is None else Paired(estimate, float(samples.std()), low, high)
