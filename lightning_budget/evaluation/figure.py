"""The picture of calibration: predicted against observed value and cost, arm by arm."""

from __future__ import annotations

import math

from lightning_budget.evaluation.results import CalibrationBins, Evaluation
from lightning_budget.plots import Figure, calibration_panel, new_figure
from lightning_budget.report.figure import method_label, plain_text

COLUMNS = 5


def calibration_figure(evaluation: Evaluation) -> Figure:
    """A panel for each outcome and arm, at most five side by side, all methods in it."""
    report, bins = evaluation.report, evaluation.calibration
    arms = list(report.arm_share)
    columns = min(len(arms), COLUMNS)
    lines = math.ceil(len(arms) / columns)
    figure = new_figure(2.6 * columns + 0.4, 2.6 * 2 * lines + 0.6)
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_visible(False)
    for o, (outcome, unit) in enumerate((("value", report.value_unit), ("cost", report.cost_unit))):
        for a, arm in enumerate(arms):
            ax = axes[o * lines + a // columns, a % columns]
            ax.set_visible(True)
            series = {method_label(c.method): _points(c) for c in bins if (c.outcome, c.arm) == (outcome, arm)}
            first = a % columns == 0
            calibration_panel(
                ax, series, f"predicted {outcome}", f"observed, {plain_text(unit)} per user" if first else ""
            )
            ax.set_title(f"{outcome}, {plain_text(arm)}", loc="left", fontsize=10)
            ax.tick_params(labelsize=8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    title = "Mean outcome with its 95 % interval, in bins of the prediction; calibrated predictions lie on the diagonal"
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=6, frameon=False, fontsize=9, title=title)
    legend.set_alignment("left")
    return figure


def _points(c: CalibrationBins) -> tuple[list[float], list[float], list[float]]:
    return c.prediction, c.observed, [math.nan if e is None else e for e in c.standard_error]
