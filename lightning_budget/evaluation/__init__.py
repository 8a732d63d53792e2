"""Predictions of any tool, judged on a randomized trial: computed, written, drawn, and as tables for a logger."""

from lightning_budget.evaluation.curves_file import read_curves, write_curves
from lightning_budget.evaluation.figure import calibration_figure, ranking_figure
from lightning_budget.evaluation.predictions import PredictionFormat, read_predictions
from lightning_budget.evaluation.render import print_rankings
from lightning_budget.evaluation.results import (
    Area,
    CalibrationBins,
    Evaluation,
    Increment,
    Paired,
    Ranking,
    RankingDifference,
)
from lightning_budget.evaluation.study import evaluate
from lightning_budget.evaluation.write import write_evaluation

__all__ = [
    "Area",
    "CalibrationBins",
    "Evaluation",
    "Increment",
    "Paired",
    "PredictionFormat",
    "Ranking",
    "RankingDifference",
    "calibration_figure",
    "evaluate",
    "print_rankings",
    "ranking_figure",
    "read_curves",
    "read_predictions",
    "write_curves",
    "write_evaluation",
]
