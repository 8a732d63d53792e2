"""Pictures of budgets: functions that take arrays and a matplotlib Axes, and return the Axes.

No pyplot and no style settings: nothing outside the given Axes changes. Colours: Okabe, Ito 2008, told apart by readers
of every colour vision; methods differ in line style and marker too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes as Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("--", "-", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY, BLACK = "#808080", "#000000"

Curve = tuple[Sequence[float], Sequence[float]]
"""Spend and value, in the order of the walk."""

Interval = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""Estimates, lower and upper ends."""


def new_figure(width: float, height: float) -> Figure:
    """A figure of ``width`` × ``height`` inches at 100 dots an inch, drawn by Agg and known to nobody else."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def method_style(position: int) -> dict[str, Any]:
    """Colour, line style and marker of the method at a position."""
    return {
        "color": COLORS[position % len(COLORS)],
        "linestyle": LINES[position % len(LINES)],
        "marker": MARKERS[position % len(MARKERS)],
    }


def budget_curve(
    ax: Axes,
    curves: Mapping[str, Curve],
    budgets: Sequence[float],
    fractions: Sequence[float],
    control: float,
    uniform: Curve,
    optimum: Curve | None = None,
    estimates: Mapping[str, Interval] | None = None,
    value_label: str = "value per user",
    cost_label: str = "budget per user",
    bands: Mapping[str, Interval] | None = None,
) -> Axes:
    """Value against budget: a line per method, the budgets marked, and what is had without a model.

    Args:
        ax: drawn on.
        curves: method to the spend and value of its policy.
        budgets: ``[B]``, marked by vertical lines, as are their ``fractions`` of the free spend.
        fractions: ``[B]``.
        control: value per user at control, a horizontal line.
        uniform: spend and value of incentives given blindly.
        optimum: spend and value of the best there is, where known; drawn on top.
        estimates: method to estimated value at each budget and the ends of its 95 % interval, ``[B]`` each; methods
            stand side by side at a budget.
        value_label, cost_label: of the axes.
        bands: method (a key of ``curves``) to budgets and the ends of the 95 % interval of its estimate at each of
            them, shaded.
    """
    right = 1.1 * max(budgets)
    ax.axhline(control, color=GREY, linestyle=":", linewidth=1.2, label="control", zorder=1)
    ax.plot(*uniform, color=GREY, linestyle="-", linewidth=1.2, label="uniform random", zorder=1)
    for i, (name, curve) in enumerate(curves.items()):
        style = method_style(i)
        ax.plot(*curve, color=style["color"], linestyle=style["linestyle"], linewidth=1.8, label=name, zorder=3)
        if bands and name in bands:
            at, low, high = bands[name]
            ax.fill_between(at, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=2)
    if optimum is not None:
        ax.plot(*optimum, color=BLACK, linewidth=1.4, label="optimum (oracle)", zorder=4)
    for i, (name, (value, low, high)) in enumerate((estimates or {}).items()):
        style = method_style(i)
        shift = 0.008 * right * (i - (len(estimates or {}) - 1) / 2)
        at = np.asarray(budgets) + shift
        # The ends of a percentile interval need not enclose the estimate: drawn as lines of their own.
        ax.vlines(at, low, high, color=style["color"], linewidth=1.0, zorder=4.5)
        ax.plot(
            at,
            value,
            style["marker"],
            color=style["color"],
            markersize=5,
            markerfacecolor="white",
            label=f"{name}, EOM and 95 % {'band' if bands else 'interval'}",
            zorder=5,
        )
    for budget, fraction in zip(budgets, fractions, strict=True):
        ax.axvline(budget, color="#D0D0D0", linewidth=0.8, zorder=0)
        ax.annotate(
            f"{100 * fraction:.4g} %",
            (budget, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=9,
            color="#404040",
        )
    ax.set_xlim(0, right)
    ax.set_ylim(
        *_limits([*curves.values(), uniform, *([optimum] if optimum else [])], right, control, estimates, bands)
    )
    ax.set_xlabel(cost_label)
    ax.set_ylabel(value_label)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return _plain(ax)


def difference_bars(
    ax: Axes,
    labels: Sequence[str],
    series: Mapping[str, Interval],
    colors: Sequence[str] = COLORS,
    value_label: str = "difference per user",
) -> Axes:
    """Differences with their intervals, and the line at zero that an interval must clear to tell.

    Args:
        ax: drawn on.
        labels: one for each of G groups of bars.
        series: name to estimate and the ends of its interval, ``[G]`` each; series stand side by side in a group.
        colors: of the series.
        value_label: of the vertical axis.
    """
    width = 0.8 / len(series)
    for i, (name, (estimate, low, high)) in enumerate(series.items()):
        at = np.arange(len(labels)) + width * (i - (len(series) - 1) / 2)
        ax.bar(at, estimate, 0.9 * width, color=colors[i % len(colors)], alpha=0.75, label=name, zorder=2)
        ax.vlines(at, low, high, color=BLACK, linewidth=1.2, zorder=3)
        ax.plot(np.repeat(at, 2), np.ravel([low, high], order="F"), "_", color=BLACK, markersize=6, zorder=3)
    ax.axhline(0.0, color=BLACK, linewidth=1.0, zorder=4)
    ax.set_xticks(range(len(labels)), labels)
    ax.set_ylabel(value_label)
    ax.margins(y=0.12)
    if len(series) > 1:
        ax.legend(frameon=False, fontsize=9, loc="best")
    return _plain(ax)


def interval_points(
    ax: Axes,
    labels: Sequence[str],
    series: Mapping[str, Interval],
    reference: float,
    value_label: str = "estimate",
) -> Axes:
    """Estimates as markers with their intervals, and the line of a reference that an interval must clear to tell.

    Args:
        ax: drawn on.
        labels: one for each of G groups of points.
        series: name to estimate and the ends of its interval, ``[G]`` each, NaN where there is none; series stand side
            by side in a group.
        reference: where the line is.
        value_label: of the vertical axis.
    """
    width = 0.6 / len(series)
    for i, (name, (estimate, low, high)) in enumerate(series.items()):
        style = method_style(i)
        at = np.arange(len(labels)) + width * (i - (len(series) - 1) / 2)
        ax.vlines(at, low, high, color=style["color"], linewidth=1.5, zorder=3)
        ax.plot(at, estimate, style["marker"], color=style["color"], markersize=6, label=name, zorder=4)
    ax.axhline(reference, color=GREY, linewidth=1.0, linestyle=":", zorder=1)
    ax.set_xticks(range(len(labels)), labels)
    ax.set_xlim(-0.6, len(labels) - 0.4)
    ax.set_ylabel(value_label)
    ax.margins(y=0.12)
    if len(series) > 1:
        ax.legend(frameon=False, fontsize=9, loc="best")
    return _plain(ax)


def arm_mix(
    ax: Axes, shares: Mapping[str, Sequence[Sequence[float]]], arms: Sequence[str], labels: Sequence[str]
) -> Axes:
    """Share of users at each arm: at every budget one stacked bar per method, control at the bottom.

    Args:
        ax: drawn on.
        shares: method to ``[B, K]`` shares.
        arms: ``[K]`` names, control first.
        labels: ``[B]`` names of the budgets.
    """
    methods = list(shares)
    # Arms are ordered: an even ramp in lightness that survives grey printing; control stays apart.
    ramp = colormaps["cividis"](np.linspace(0.95, 0.05, len(arms) - 1))
    colors = ["#DDDDDD", *ramp]
    at = np.arange(len(labels))[:, None] * (len(methods) + 0.8) + np.arange(len(methods))
    for m, method in enumerate(methods):
        share = np.asarray(shares[method], dtype=float)
        bottom = np.cumsum(share, axis=1) - share
        for k, arm in enumerate(arms):
            ax.bar(
                at[:, m],
                share[:, k],
                0.86,
                bottom=bottom[:, k],
                color=colors[k],
                edgecolor="white",
                linewidth=0.4,
                label=arm if m == 0 else None,
            )
    for center, text in zip(at.mean(axis=1), labels, strict=True):
        ax.annotate(text, (center, 1.015), ha="center", va="bottom", fontsize=9, color="#404040")
    ax.set_xticks(at.ravel(), methods * len(labels), rotation=90, fontsize=8)
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(0, 1.1)
    ax.set_yticks(np.linspace(0, 1, 6), [f"{p} %" for p in range(0, 101, 20)])
    ax.set_ylabel("share of users")
    handles, names = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], names[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    return _plain(ax)


def calibration_panel(
    ax: Axes,
    series: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    prediction_label: str = "predicted",
    outcome_label: str = "observed",
) -> Axes:
    """Observed against predicted means, with bars of ± 1.96 standard errors; if calibrated they lie on the diagonal.

    Args:
        ax: drawn on.
        series: method to predicted means, observed means and standard errors of the latter, one each for its bins; NaN
            where there is no standard error.
        prediction_label, outcome_label: of the axes.
    """
    ends: list[float] = []
    for i, (name, (predicted, observed, error)) in enumerate(series.items()):
        style = method_style(i)
        at, mean = np.asarray(predicted, dtype=float), np.asarray(observed, dtype=float)
        half = 1.96 * np.nan_to_num(np.asarray(error, dtype=float))
        ax.vlines(at, mean - half, mean + half, color=style["color"], linewidth=1.0, zorder=3)
        ax.plot(at, mean, style["marker"], color=style["color"], markersize=4, label=name, zorder=4)
        ends += [*at.tolist(), *(mean - half).tolist(), *(mean + half).tolist()]
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    ax.plot([low - margin, high + margin], [low - margin, high + margin], color=GREY, linewidth=1.0, zorder=1)
    ax.set_xlim(low - margin, high + margin)
    ax.set_ylim(low - margin, high + margin)
    ax.set_xlabel(prediction_label)
    ax.set_ylabel(outcome_label)
    return _plain(ax)


def bytes_per_rank(
    ax: Axes,
    ranks: Sequence[int],
    series: Mapping[str, Sequence[float]],
    limits: Mapping[str, float],
) -> Axes:
    """Bytes that each rank must hold against the number of ranks, and the memory there is; both axes logarithmic.

    Args:
        ax: drawn on.
        ranks: ``[R]``, ascending.
        series: name to bytes per rank, ``[R]``.
        limits: name to bytes, horizontal lines.
    """
    for i, (name, amount) in enumerate(series.items()):
        ax.plot(ranks, amount, **method_style(i), markersize=4, linewidth=1.6, label=name, zorder=3)
    for i, (name, limit) in enumerate(limits.items()):
        ax.axhline(limit, color=GREY, linestyle=LINES[::-1][i % len(LINES)], linewidth=1.2, zorder=1)
        # Above its line, unless the next line lies close above.
        below = any(limit < other < 2 * limit for other in limits.values())
        ax.annotate(
            name,
            (ranks[-1], limit),
            xytext=(0, -2 if below else 2),
            textcoords="offset points",
            ha="right",
            va="top" if below else "bottom",
            fontsize=8,
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    ax.set_xticks(ranks, [str(r) for r in ranks])
    low, high = (int(np.floor(np.log2(f(f(a) for a in series.values())))) for f in (min, max))
    # Powers of two, every second one, are named as people name memory.
    ticks = [2.0**p for p in range(low - low % 2, high + 3, 2)]
    ax.set_yticks(ticks, [_binary(t) for t in ticks])
    ax.set_yticks([], minor=True)
    ax.set_xlabel("ranks")
    ax.set_ylabel("bytes per rank")
    ax.legend(frameon=False, fontsize=9, loc="lower left")
    return _plain(ax)


def _binary(amount: float) -> str:
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    step = min(int(np.log2(amount)) // 10, len(units) - 1)
    return f"{amount / 1024**step:g} {units[step]}"


def _limits(
    curves: Sequence[Curve],
    right: float,
    control: float,
    estimates: Mapping[str, Interval] | None,
    bands: Mapping[str, Interval] | None,
) -> tuple[float, float]:
    """Of what is seen left of ``right``, with a margin."""
    seen = [np.asarray([control])]
    for spend, value in curves:
        # Interpolated, so that a long straight line counts only as far as it is seen.
        order = np.argsort(spend, kind="stable")
        x, y = np.asarray(spend, dtype=float)[order], np.asarray(value, dtype=float)[order]
        seen += [y[x <= right], np.interp([right], x, y)]
    seen += [np.asarray(end, dtype=float) for _, *ends in (estimates or {}).values() for end in ends]
    seen += [np.asarray(end, dtype=float) for _, *ends in (bands or {}).values() for end in ends]
    values = np.concatenate(seen)
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _plain(ax: Axes) -> Axes:
    ax.spines[["top", "right"]].set_visible(False)
    return ax
