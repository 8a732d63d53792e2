"""Pictures of calibration, predicted against observed value and cost, and of rankings, arm by arm."""

from __future__ import annotations

import math

from lightning_budget.evaluation.results import CalibrationBins, Evaluation, Paired, Ranking
from lightning_budget.plots import (
    COLORS,
    Figure,
    Interval,
    calibration_panel,
    difference_bars,
    interval_points,
    new_figure,
)
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


def ranking_figure(evaluation: Evaluation) -> Figure:
    """AUCC by arm and method with its interval, and below it what each method has over the baseline."""
    differences = evaluation.ranking_differences
    found = {(r.method, r.arm): r for r in evaluation.rankings}
    methods, arms = (list(dict.fromkeys(key[i] for key in found)) for i in range(2))
    labels = [plain_text(arm) for arm in arms]
    figure = new_figure(max(6.4, 1.2 * len(arms) + 2), 7.2 if differences else 3.8)
    panels = figure.subplots(2 if differences else 1, 1, squeeze=False)[:, 0]
    series = {method_label(m): _ends([_share(found[m, arm]) for arm in arms]) for m in methods}
    interval_points(panels[0], labels, series, 0.5, "AUCC")
    ends = f"{100 * evaluation.report.level:g} % intervals from resamples of users; a random ranking has ½"
    title = f"AUCC of each arm against control, users ranked by predicted ROI\n{ends}"
    panels[0].set_title(title, loc="left", fontsize=11)
    if differences:
        minus = {(d.method, d.arm): d.aucc for d in differences}
        others = [m for m in methods if any(m == d.method for d in differences)]
        gaps = {method_label(m): _ends([_gap(minus[m, arm]) for arm in arms]) for m in others}
        difference_bars(panels[1], labels, gaps, COLORS[1:], "difference of AUCC")
        baseline = method_label(differences[0].baseline)
        name = method_label(others[0]) if len(others) == 1 else "Each method"
        panels[1].set_title(f"{name} minus {baseline}, on common resamples of users", loc="left", fontsize=11)
    return figure


Numbers = tuple[float | None, float | None, float | None]


def _share(r: Ranking) -> Numbers:
    return r.aucc, r.aucc_low, r.aucc_high


def _gap(paired: Paired | None) -> Numbers:
    return (None, None, None) if paired is None else (paired.estimate, paired.low, paired.high)


def _ends(of_arms: list[Numbers]) -> Interval:
    estimate, low, high = ([math.nan if x is None else x for x in column] for column in zip(*of_arms, strict=True))
    return estimate, low, high
