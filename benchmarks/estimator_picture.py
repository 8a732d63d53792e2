"""Cosine to the exact gradient against what it costs, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from estimator_quality import Quality

from lightning_budget.plots import MARKERS, Axes, method_style, new_figure

ALL_MARKERS = (*MARKERS, "X", "*", "<", ">")
"""An estimator without samples is a marker alone, so no two may share one."""


def draw(path: Path, found: Sequence[Quality], users: int, treatments: int) -> None:
    """Both panels to a PNG file: against evaluations of the policy, and against processor time."""
    figure = new_figure(11.0, 4.6)
    left, right = figure.subplots(1, 2, sharey=True)
    cosine_against(left, found, [q.evaluations for q in found], "evaluations of the policy a step")
    cosine_against(right, found, [q.milliseconds for q in found], f"ms of processor time, {users:,} users")
    left.set_ylabel("cosine to the exact gradient")
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    figure.suptitle(f"{users:,} users × {treatments} arms, by the predictions", fontsize=10)
    figure.savefig(path, format="png")


def cosine_against(ax: Axes, found: Sequence[Quality], cost: Sequence[float], label: str) -> Axes:
    """A line per estimator from few samples to many, a marker for one without samples.

    Args:
        ax: drawn on; found: estimators; cost: one number each, above 0, on a logarithmic axis; label: of it.
    """
    lines: dict[str, list[tuple[float, float]]] = {}
    for q, c in zip(found, cost, strict=True):
        name = q.name if q.evaluations > 1 else q.label
        lines.setdefault(name, []).append((c, q.cosine))
    for i, (name, points) in enumerate(lines.items()):
        style = {**method_style(i), "marker": ALL_MARKERS[i % len(ALL_MARKERS)]}
        ax.plot(*zip(*points, strict=True), **style, markersize=7, alpha=0.85, label=name)
    ax.set_xscale("log")
    ax.set_ylim(0, 1.03)
    ax.set_xlabel(label)
    ax.grid(color="#E5E5E5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
