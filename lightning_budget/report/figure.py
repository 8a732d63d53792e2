"""The picture of a comparison: what a budget earns, the paired difference, and who gets what."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_budget.metrics.functional import PairedDifference
from lightning_budget.plots import (
    COLORS,
    Axes,
    Curve,
    Figure,
    Interval,
    arm_mix,
    budget_curve,
    difference_bars,
    new_figure,
)
from lightning_budget.report.results import ORACLE, UNIFORM, Band, Report, label


def comparison_figure(report: Report, bands: Sequence[Band] = ()) -> Figure:
    """Draw a report at 1200 × 800 pixels; the difference panel is left out where one method stands alone.

    Lines are true values where the truth is known, else EOM; markers with bars are EOM with their interval, and so are
    the ``bands``, which may be of some methods only.
    """
    figure = new_figure(12.0, 8.0)
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.08)  # type: ignore[union-attr]
    # Subfigures lay out alone: the legend of one panel takes no room from another.
    rows = figure.add_gridspec(2, 1, height_ratios=[1.2, 1.0])
    _curves(figure.add_subfigure(rows[0]).add_subplot(), report, bands)
    below = figure.add_subfigure(rows[1])
    if report.differences:
        columns = below.add_gridspec(1, 2, width_ratios=[1.0, 1.4])
        _differences(below.add_subfigure(columns[0]).add_subplot(), report)
        below = below.add_subfigure(columns[1])
    _mix(below.add_subplot(), report)
    return figure


def _curves(ax: Axes, report: Report, bands: Sequence[Band]) -> None:
    kind = "true" if report.has_oracle else "eom_hajek"
    lines: dict[str, Curve] = {c.method: (c.spend, c.value) for c in report.curves if c.kind == kind}
    values: dict[str, Interval] = {}
    for name in report.methods:
        points = [row.eom_hajek for row in report.rows if row.method == name]
        low, high = ([getattr(p, end) for p in points] for end in ("low", "high"))
        values[method_label(name)] = ([p.value for p in points], low, high)
    what = "true value" if report.has_oracle else "EOM (Hájek)"
    budget_curve(
        ax,
        {method_label(name): lines[name] for name in report.methods},
        report.budgets,
        report.fractions,
        lines[UNIFORM][1][0],
        lines[UNIFORM],
        lines.get(ORACLE),
        values,
        f"{what}, {plain_text(report.value_unit)} per user",
        f"budget, {plain_text(report.cost_unit)} per user (above: share of the free spend, {report.free_spend:.4g})",
        {method_label(b.method): (b.budget, b.low, b.high) for b in bands},
    )
    lines_are = (
        "lines are true values, markers estimates on the trial" if report.has_oracle else "estimates on the trial"
    )
    ax.set_title(f"What a budget earns: {lines_are}", loc="left", fontsize=11, pad=18)


def _differences(ax: Axes, report: Report) -> None:
    baseline = method_label(report.differences[0].baseline)
    labels = [*_percents(report), "mean"]
    what = "true value" if report.has_oracle else "EOM (Hájek)"
    if len(report.differences) == 1:
        (difference,) = report.differences
        series = {"EOM (Hájek)": _with_mean(difference.eom_hajek)}
        if difference.true_value is not None:
            series = {"true value": _with_mean(difference.true_value), **series}
        colors = (COLORS[1], COLORS[5])
        title = f"{method_label(difference.method)} minus {baseline}"
    else:
        series = {method_label(d.method): _with_mean(d.true_value or d.eom_hajek) for d in report.differences}
        colors = COLORS[1:]
        title = f"Each method minus {baseline}: {what}"
    difference_bars(ax, labels, series, colors, f"{plain_text(report.value_unit)} per user")
    ax.set_title(f"{title}\nwith {100 * report.level:g} % intervals", loc="left", fontsize=11)
    ax.set_xlabel("budget")


def _mix(ax: Axes, report: Report) -> None:
    shares: dict[str, list[list[float]]] = {}
    for d in report.deployments:
        shares.setdefault(method_label(d.method), []).append(list(d.share.values()))
    arm_mix(ax, shares, [plain_text(arm) for arm in report.arm_share], _percents(report))
    ax.set_title("Who gets what, at the multiplier that meets the budget\non predicted cost", loc="left", fontsize=11)


def _with_mean(p: PairedDifference) -> Interval:
    pairs = ((p.estimate, p.mean), (p.low, p.mean_low), (p.high, p.mean_high))
    estimate, low, high = ([*each.tolist(), float(mean)] for each, mean in pairs)
    return estimate, low, high


def _percents(report: Report) -> list[str]:
    return [f"{100 * f:.4g} %" for f in report.fractions]


def method_label(method: str) -> str:
    """How people read the name of a method in a picture."""
    return plain_text(label(method))


def plain_text(text: str) -> str:
    """Dollars as dollars: a pair of them would be read as mathematics."""
    return text.replace("$", r"\$")
