"""One call from predictions to everything that is found about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from lightning_budget.batch import ResponsePrediction
from lightning_budget.evaluation.arms import areas, arm_increments
from lightning_budget.evaluation.calibration import calibrations
from lightning_budget.evaluation.ranking import rankings
from lightning_budget.evaluation.results import Evaluation
from lightning_budget.report.compute import analyse
from lightning_budget.report.progress import Tracker, untracked
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable
from lightning_budget.trial import TrialChecks, check_trial

BAND_BUDGETS = 32


@torch.no_grad()
def evaluate(
    table: RCTTable,
    schema: DataSchema,
    predictions: Mapping[str, ResponsePrediction],
    fractions: Sequence[float],
    resamples: int = 200,
    seed: int = 0,
    split: str = "test",
    sources: Mapping[str, str] | None = None,
    checks: TrialChecks | None = None,
    track: Tracker = untracked,
) -> Evaluation:
    """Judge predictions on a randomized trial: under budgets, as rankings, and as predictions.

    Args:
        table, schema, predictions, fractions, resamples, seed: see :func:`~lightning_budget.report.compare`.
        split, sources: recorded, see :class:`Evaluation`.
        checks: of the experiment; made here if not given.
        track: passed over the longer loops, as ``rich.progress.track`` is.

    Raises:
        InputError: as :func:`~lightning_budget.report.compare` and :func:`~lightning_budget.trial.check_trial`.
    """
    if checks is None:
        checks = check_trial(table, schema)
    found = analyse(
        table, schema, predictions, fractions, None, resamples, seed, band_budgets=BAND_BUDGETS, track=track
    )
    predictions = {name: ResponsePrediction(p.value.cpu(), p.cost.cpu()) for name, p in predictions.items()}
    ranked, ranking_differences = rankings(table, schema, predictions, resamples, seed, track)
    return Evaluation(
        split=split,
        sources=dict(sources or {}),
        report=found.report,
        checks=checks,
        curves=found.curves,
        bands=found.bands,
        increments=arm_increments(table, schema),
        areas=areas(table, schema, found.curves, found.report.free_spend),
        rankings=ranked,
        ranking_differences=ranking_differences,
        calibration=calibrations(table, schema, predictions),
    )
