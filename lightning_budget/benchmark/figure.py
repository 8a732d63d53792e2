"""The picture: each method minus the best two-stage one, a panel for each data set."""

from __future__ import annotations

from lightning_budget.benchmark.paired import Paired, against, best_two_stage
from lightning_budget.benchmark.results import Results
from lightning_budget.plots import BLACK, COLORS, GREY, Axes, Figure, new_figure
from lightning_budget.report.figure import plain_text

COLUMNS = 3
KINDS = ("two_stage", "direct", "published", "reference", "default", "ablation")


def differences_figure(results: Results) -> Figure:
    """Mean over budgets with its interval: a row per method, coloured by kind; zero is the best two-stage method."""
    datasets = [d for d in results.datasets() if best_two_stage(results, d) is not None]
    rows = -(-max(len(datasets), 1) // COLUMNS)
    height = 1.2 + 0.24 * len(results.suite.methods)
    figure = new_figure(5.0 * min(COLUMNS, max(len(datasets), 1)), height * rows)
    axes = figure.subplots(rows, min(COLUMNS, max(len(datasets), 1)), squeeze=False).ravel()
    for ax, dataset in zip(axes, datasets, strict=False):
        _panel(ax, results, dataset)
    for ax in axes[len(datasets) :]:
        ax.set_axis_off()
    return figure


def _panel(ax: Axes, results: Results, dataset: str) -> None:
    baseline = best_two_stage(results, dataset)
    assert baseline is not None
    methods = [m for m in results.suite.methods if m in results.methods(dataset)]
    ax.axvline(0.0, color=BLACK, linewidth=1.0, zorder=1)
    for position, method in enumerate(methods):
        kind = results.kinds[method]
        color = COLORS[KINDS.index(kind) % len(COLORS)] if kind in KINDS else GREY
        if method == baseline:
            ax.plot(0.0, position, "D", color=color, markersize=5, zorder=3)
        elif (paired := against(results, dataset, method, baseline)) is not None:
            _dot(ax, paired, position, color)
    ax.set_yticks(range(len(methods)), methods, fontsize=8)
    ax.set_ylim(len(methods) - 0.5, -0.5)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    cell = results.any_cell(dataset)
    what = "true value" if cell["has_oracle"] else "EOM (Hájek)"
    ax.set_xlabel(f"{what} minus {baseline}'s, {plain_text(cell['value_unit'])} per user", fontsize=8)
    ax.set_title(dataset, loc="left", fontsize=10)


def _dot(ax: Axes, paired: Paired, position: int, color: str) -> None:
    ax.hlines(position, paired.mean_low, paired.mean_high, color=color, linewidth=1.6, zorder=2)
    ax.plot(paired.mean, position, "o", color=color, markersize=5, zorder=3)
