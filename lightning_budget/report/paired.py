"""One bootstrap over users for all methods, and their differences on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.metrics.functional import (
    CostCurve,
    PairedDifference,
    bootstrap_curves,
    matched_interval,
    paired_oracle_difference,
    percentile_interval,
)
from lightning_budget.report.progress import Tracker, untracked
from lightning_budget.report.results import END_TO_END, LEVEL, TWO_STAGE, Difference, Truth
from lightning_budget.table import RCTTable


def bootstrap(
    table: RCTTable,
    methods: Mapping[str, ResponsePrediction],
    budgets: Tensor,
    resamples: int,
    seed: int,
    track: Tracker = untracked,
) -> dict[str, Tensor]:
    """EOM ``[R, B]`` of every method on the same resamples."""
    outcomes = (table.user, table.value, table.cost, table.propensity)
    return {
        name: bootstrap_curves(
            matched_interval(p.value, p.cost, table.treatment),
            *outcomes,
            budgets,
            resamples,
            seed,
            "hajek",
            table.weight,
        )
        for name, p in track(list(methods.items()), "Bootstrap")
    }


def differences(
    table: RCTTable,
    methods: Mapping[str, ResponsePrediction],
    curves: Mapping[str, CostCurve],
    truth: Truth | None,
    budgets: Tensor,
    samples: Mapping[str, Tensor],
    seed: int,
    track: Tracker = untracked,
) -> list[Difference]:
    """Every method minus the first; of two-stage and end-to-end, two-stage is the one subtracted in any order."""
    baseline = baseline_of(methods)
    found = []
    for name in track([name for name in methods if name != baseline], "Differences"):
        estimate = curves[name].at_budget(budgets).value - curves[baseline].at_budget(budgets).value
        true = None
        if truth is not None:
            a, b = ((methods[m].value, methods[m].cost) for m in (name, baseline))
            resamples = len(samples[name])
            true = paired_oracle_difference(a, b, *truth, table.user, budgets, resamples, seed, LEVEL, table.weight)
        found.append(Difference(name, baseline, _paired(estimate, samples[name] - samples[baseline]), true))
    return found


def baseline_of(methods: Iterable[str]) -> str:
    """The method that the others are compared with: two-stage of the two phases of a run, else the first."""
    names = list(methods)
    return TWO_STAGE if set(names) == {TWO_STAGE, END_TO_END} else names[0]


def _paired(estimate: Tensor, samples: Tensor) -> PairedDifference:
    return PairedDifference(
        estimate,
        *percentile_interval(samples, LEVEL),
        estimate.mean(),
        *percentile_interval(samples.mean(1), LEVEL),
    )
