"""What an evaluation finds beside the comparison under budgets, as values that turn into plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lightning_budget.metrics.functional import CostCurve
from lightning_budget.report.results import Band, Report
from lightning_budget.trial import TrialChecks

Curves = dict[str, dict[str, CostCurve]]
"""Kind (``true``, ``eom_hajek``, ``eom_ipw``) to method to its whole curve."""


def known(x: float) -> float | None:
    """A finite number as it is; ``None`` for all else, which JSON cannot say."""
    return x if math.isfinite(x) else None


@dataclass(frozen=True)
class Increment:
    """What an arm earns and costs over control, per user, with 95 % intervals; ROI is value over cost.

    ``None``: not defined, or for an end of the ROI's (Fieller) interval, not bounded.
    """

    arm: str
    value: float
    value_error: float
    value_low: float
    value_high: float
    cost: float
    cost_error: float
    cost_low: float
    cost_high: float
    roi: float | None
    roi_low: float | None
    roi_high: float | None


@dataclass(frozen=True)
class Area:
    """Normalised area under a method's curve, and the references that all methods of a kind share.

    Attributes:
        kind: ``true`` or ``eom_hajek``.
        area: mean share of ``free_value`` − ``base_value`` that the method has over budgets up to ``free_spend``;
            ``None`` where the references are no gain.
        free_spend: currency per user; base_value, free_value: value units per user.
    """

    method: str
    kind: str
    area: float | None
    free_spend: float
    base_value: float
    free_value: float


@dataclass(frozen=True)
class Ranking:
    """How a method ranks users for one arm against control.

    Attributes:
        aucc: by predicted ROI; a random ranking has ½. ``None`` unless the arm costs and earns more than control.
        auuc, auuc_normalized: by predicted uplift of value: area (value units per row), and over the perfect ranking's.
        qini, qini_normalized: area of the Qini curve above random (value units per row), and over the perfect one's.
        …_low, …_high: 95 % percentile interval from resamples of users. ``None``: the measure is not defined on every
            resample, which is so where the arm's total gain or cost is not told from 0, or there were too few.
    """

    method: str
    arm: str
    aucc: float | None
    aucc_low: float | None
    aucc_high: float | None
    auuc: float
    auuc_low: float | None
    auuc_high: float | None
    auuc_normalized: float | None
    qini: float
    qini_low: float | None
    qini_high: float | None
    qini_normalized: float | None


@dataclass(frozen=True)
class Paired:
    """A difference on common resamples of users: their standard deviation, and 95 % percentile interval."""

    estimate: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class RankingDifference:
    """Measures of :class:`Ranking` of ``method`` minus those of ``baseline``; ``None`` where one has no interval."""

    method: str
    baseline: str
    arm: str
    resamples: int
    aucc: Paired | None
    auuc: Paired | None
    qini: Paired | None


@dataclass(frozen=True)
class CalibrationBins:
    """Predicted beside observed means of one arm, in bins of the prediction.

    Attributes:
        outcome: ``value`` or ``cost``.
        prediction, observed: means of each bin, outcome units per user.
        standard_error: of ``observed``; ``None`` in a bin of one row.
        rows: of each bin.
        expected_error: mean distance of ``observed`` from ``prediction``; noise alone makes it positive.
        slope, intercept: of the outcome on the prediction, 1 and 0 if calibrated; ``None`` for a constant prediction.
    """

    method: str
    outcome: str
    arm: str
    prediction: list[float]
    observed: list[float]
    standard_error: list[float | None]
    rows: list[int]
    expected_error: float
    slope: float | None
    intercept: float | None


@dataclass(frozen=True)
class Evaluation:
    """Everything that is found about predictions on one split of a trial.

    Attributes:
        split: its name.
        sources: method to the file its predictions come from.
        report: the methods under budgets.
        checks: of the experiment.
        curves: whole.
        bands: of every method.
        increments: every arm but control; none where an arm has fewer than two users.
        areas, rankings, ranking_differences, calibration: see there.
    """

    split: str
    sources: dict[str, str]
    report: Report
    checks: TrialChecks
    curves: Curves
    bands: list[Band]
    increments: list[Increment]
    areas: list[Area]
    rankings: list[Ranking]
    ranking_differences: list[RankingDifference]
    calibration: list[CalibrationBins]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the report's and, beside them, all but the whole curves."""
        lists = ("bands", "increments", "areas", "rankings", "ranking_differences", "calibration")
        return {
            "split": self.split,
            "sources": self.sources,
            **self.report.to_dict(),
            "checks": self.checks.to_dict(),
            **{name: [asdict(x) for x in getattr(self, name)] for name in lists},
        }

    def numbers(self) -> dict[str, float]:
        """Flat names and numbers for a logger, all below the name of the split."""
        named: dict[str, float | None] = dict(self.report.numbers(self.split))
        s = self.split
        for name, verdict in self.checks.verdicts().items():
            named[f"{s}/check/{name.replace(' ', '_')}"] = float(verdict.ok)
        for i in self.increments:
            named |= {f"{s}/increment/{i.arm}/{what}": getattr(i, what) for what in ("value", "cost", "roi")}
        for a in self.areas:
            named[f"{s}/area/{a.kind}/{a.method}"] = a.area
        for r in self.rankings:
            named |= {f"{s}/{what}/{r.method}/{r.arm}": getattr(r, what) for what in ("aucc", "auuc", "qini")}
        for row in (row for d in self.ranking_differences for row in _measures(d)):
            key = f"{s}/{row['measure']}/{row['method']}-{row['baseline']}/{row['arm']}"
            named |= {key: row["estimate"], f"{key}_low": row["low"], f"{key}_high": row["high"]}
        for c in self.calibration:
            named[f"{s}/calibration/{c.outcome}/{c.method}/{c.arm}"] = c.expected_error
        return {name: x for name, x in named.items() if x is not None}

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Columns and rows by name: what a report.json nests, flat."""
        report = self.report
        found: dict[str, list[dict[str, Any]]] = {
            "checks": [{"check": n, "ok": v.ok, "text": v.text} for n, v in self.checks.verdicts().items()],
            "outcomes": [row.to_dict() for row in report.rows],
            "differences": list(_differences(report)),
            "served": [
                {k: x for k, x in asdict(d).items() if k != "share"}
                | {f"share {arm}": share for arm, share in d.share.items()}
                for d in report.deployments
            ],
            "curves": [
                {"method": c.method, "kind": c.kind, "spend": x, "value": y}
                for c in report.curves
                for x, y in zip(c.spend, c.value, strict=True)
            ],
            "bands": [row for b in self.bands for row in _in_rows(asdict(b))],
            "increments": [asdict(i) for i in self.increments],
            "areas": [asdict(a) for a in self.areas],
            "rankings": [asdict(r) for r in self.rankings],
            "ranking_differences": [row for d in self.ranking_differences for row in _measures(d)],
            "calibration": [row for c in self.calibration for row in _in_rows(asdict(c))],
        }
        tables = {}
        for name, rows in found.items():
            columns = list(dict.fromkeys(key for row in rows for key in row))
            tables[name] = (columns, [[row.get(c) for c in columns] for row in rows])
        return {name: table for name, table in tables.items() if table[1]}


def _differences(report: Report) -> Iterable[dict[str, Any]]:
    for d in report.differences:
        for kind, p in (("true", d.true_value), ("eom_hajek", d.eom_hajek)):
            if p is None:
                continue
            ends = zip(p.estimate.tolist(), p.low.tolist(), p.high.tolist(), strict=True)
            rows = [(f"{f:g}", *e) for f, e in zip(report.fractions, ends, strict=True)]
            rows.append(("mean", float(p.mean), float(p.mean_low), float(p.mean_high)))
            for fraction, estimate, low, high in rows:
                yield {
                    "method": d.method,
                    "baseline": d.baseline,
                    "kind": kind,
                    "fraction": fraction,
                    "estimate": estimate,
                    "low": low,
                    "high": high,
                }


def _measures(d: RankingDifference) -> Iterable[dict[str, Any]]:
    for what in ("aucc", "auuc", "qini"):
        if (paired := getattr(d, what)) is not None:
            yield {"method": d.method, "baseline": d.baseline, "arm": d.arm, "measure": what, **asdict(paired)}


def _in_rows(fields: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """One row for each entry of the lists, the other fields repeated."""
    lists = {k: x for k, x in fields.items() if isinstance(x, list)}
    single = {k: x for k, x in fields.items() if k not in lists}
    for entries in zip(*lists.values(), strict=True):
        yield single | dict(zip(lists, entries, strict=True))
