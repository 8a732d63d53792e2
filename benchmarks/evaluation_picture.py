"""How often intervals hold the truth, and how wide they are, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation_intervals import Found

from lightning_budget.plots import Axes, method_style, new_figure


def draw(
    path: Path,
    found: Mapping[str, Found],
    widths: Mapping[str, Sequence[tuple[float, float]]],
    limits: tuple[float, float],
) -> None:
    """Both panels to a PNG file: coverage by number and kind of interval, and half width by rows."""
    figure = new_figure(11.0, 5.0)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    coverage_of(left, found, limits)
    width_by_rows(right, widths)
    figure.savefig(path, format="png")


def coverage_of(ax: Axes, found: Mapping[str, Found], limits: tuple[float, float]) -> Axes:
    """A row for each number, a marker with ± 1.96 standard errors for each kind of interval, the limits as a band.

    Args:
        ax: drawn on; found: by name; limits: least and largest coverage allowed.
    """
    kinds = list(dict.fromkeys(kind for one in found.values() for kind in one.ends))
    ax.axvspan(100 * limits[0], 100 * limits[1], color="#EEEEEE", zorder=0)
    ax.axvline(95, color="#808080", linewidth=1.0, linestyle=":", zorder=1)
    for k, kind in enumerate(kinds):
        style = {**method_style(k), "linestyle": "none"}
        for i, one in enumerate(found.values()):
            if kind not in one.ends:
                continue
            share, error = one.coverage(kind)
            at = i + 0.22 * (k - (len(kinds) - 1) / 2)
            label = kind if i == 0 else None
            ax.errorbar(100 * share, at, xerr=196 * error, **style, markersize=5, elinewidth=1.2, label=label, zorder=3)
    ax.set_yticks(range(len(found)), list(found))
    ax.invert_yaxis()
    ax.set_xlabel("% of 95 % intervals that hold the truth")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=len(kinds))
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def width_by_rows(ax: Axes, widths: Mapping[str, Sequence[tuple[float, float]]]) -> Axes:
    """Half width against rows, both logarithmic; the thin lines fall with the square root of the rows.

    Args:
        ax: drawn on; widths: by name, pairs of rows and half width.
    """
    sizes = [rows for rows, _ in next(iter(widths.values()))]
    for i, (name, points) in enumerate(widths.items()):
        rows, halves = zip(*points, strict=True)
        ax.plot(rows, halves, **method_style(i), markersize=6, label=name, zorder=3)
        ideal = [halves[0] * (rows[0] / n) ** 0.5 for n in rows]
        ax.plot(rows, ideal, color="#808080", linewidth=0.7, zorder=1)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xticks(sizes, [f"{rows:,.0f}" for rows in sizes])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("rows of the trial")
    ax.set_ylabel("half width of a 95 % interval")
    ax.grid(color="#E5E5E5", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=9, loc="best")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
