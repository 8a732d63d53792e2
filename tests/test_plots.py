"""Drawing on an Axes: the numbers that are seen, and nothing else touched."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_hex

from lightning_budget.plots import (
    COLORS,
    arm_mix,
    budget_curve,
    calibration_panel,
    difference_bars,
    interval_points,
    method_style,
    new_figure,
)

BUDGETS, FRACTIONS = [0.5, 1.0], [0.1, 0.2]
CURVES = {"one": ([0.0, 0.6, 4.0], [1.0, 2.0, 40.0]), "two": ([0.0, 0.6, 4.0], [1.0, 2.5, 3.0])}
UNIFORM = ([0.0, 2.0], [1.0, 2.0])


def draw(**options):
    ax = new_figure(6, 4).add_subplot()
    assert budget_curve(ax, CURVES, BUDGETS, FRACTIONS, 1.0, UNIFORM, **options) is ax
    ax.figure.canvas.draw()
    return ax


def test_budget_curve_shows_what_it_is_given() -> None:
    optimum = ([0.0, 2.0], [1.0, 3.5])
    estimates = {"one": ([1.9, 2.1], [1.5, 1.6], [2.2, 2.8]), "two": ([2.4, 2.6], [2.0, 2.2], [3.0, 3.2])}
    ax = draw(optimum=optimum, estimates=estimates, value_label="V", cost_label="C")
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["one"].get_xydata().tolist() == [list(p) for p in zip(*CURVES["one"], strict=True)]
    assert lines["optimum (oracle)"].get_ydata().tolist() == optimum[1]
    assert lines["optimum (oracle)"].zorder > lines["two"].zorder > lines["uniform random"].zorder
    assert set(lines["control"].get_ydata()) == {1.0}
    assert [t.get_text() for t in ax.texts] == ["10 %", "20 %"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("C", "V")
    legend = [t.get_text() for t in ax.get_legend().get_texts()]
    assert [t for t in legend if "EOM" in t] == ["one, EOM and 95 % interval", "two, EOM and 95 % interval"]
    bars = [s[:, 1].tolist() for c in ax.collections for s in c.get_segments()]
    assert bars == [[1.5, 2.2], [1.6, 2.8], [2.0, 3.0], [2.2, 3.2]]


def test_interval_that_misses_its_estimate_is_drawn_where_it_is() -> None:
    ax = draw(estimates={"one": ([1.0, 2.0], [1.5, 1.8], [2.2, 2.4])})
    assert ax.collections[0].get_segments()[0][:, 1].tolist() == [1.5, 2.2]


def test_bands_are_shaded_in_the_colour_of_their_line_and_seen() -> None:
    ax = draw(bands={"two": ([0.5, 1.0], [-3.0, 2.0], [2.0, 9.0])})
    (band,) = ax.collections
    assert to_hex(band.get_facecolor()[0]) == method_style(1)["color"].lower()
    outline = {tuple(p) for p in band.get_paths()[0].vertices.tolist()}
    assert {(0.5, -3.0), (1.0, 2.0), (0.5, 2.0), (1.0, 9.0)} <= outline
    bottom, top = ax.get_ylim()
    assert bottom < -3
    assert top > 9


def test_calibration_has_a_diagonal_and_bars() -> None:
    ax = new_figure(4, 4).add_subplot()
    series = {"one": ([1.0, 2.0], [1.5, 2.0], [0.5, float("nan")]), "two": ([3.0], [6.0], [1.0])}
    assert calibration_panel(ax, series, "p", "o") is ax
    assert [s[:, 1].tolist() for s in ax.collections[0].get_segments()] == [[1.5 - 0.98, 1.5 + 0.98], [2.0, 2.0]]
    points = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert (points["one"], points["two"]) == ([[1.0, 1.5], [2.0, 2.0]], [[3.0, 6.0]])
    assert any((line.get_xdata() == line.get_ydata()).all() for line in ax.lines if line.get_label() not in series)
    assert ax.get_xlim() == ax.get_ylim()
    assert ax.get_xlim()[1] > 7.96
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("p", "o")
    calibration_panel(new_figure(4, 4).add_subplot(), {})


def test_view_fits_what_is_seen_and_ends_after_the_last_budget() -> None:
    ax = draw()
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    assert (left, 1.0 < right < 1.2) == (0, True)
    seen = [np.interp(right, *curve) for curve in CURVES.values()]
    assert bottom < 1.0
    assert max(seen) < top < 2 * max(seen)


def test_without_an_optimum_none_is_named() -> None:
    assert all("optimum" not in t.get_text() for t in draw().get_legend().get_texts())


def test_flat_curves_still_have_a_view() -> None:
    ax = new_figure(6, 4).add_subplot()
    budget_curve(ax, {"m": ([0.0], [0.0])}, [1.0], [0.5], 0.0, ([0.0, 0.0], [0.0, 0.0]))
    assert ax.get_ylim()[0] < 0 < ax.get_ylim()[1]


def test_difference_bars_stand_on_zero_with_their_intervals() -> None:
    ax = new_figure(6, 4).add_subplot()
    series = {"true value": ([0.2, -0.1], [0.1, -0.3], [0.3, 0.05]), "EOM": ([0.5, 0.4], [-1.0, 0.1], [1.0, 0.8])}
    assert difference_bars(ax, ["10 %", "mean"], series, value_label="points") is ax
    assert [p.get_height() for p in ax.patches] == pytest.approx([0.2, -0.1, 0.5, 0.4])
    assert [s[:, 1].tolist() for s in ax.collections[0].get_segments()] == [[0.1, 0.3], [-0.3, 0.05]]
    assert any(set(line.get_ydata()) == {0.0} and len(line.get_ydata()) == 2 for line in ax.lines)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["10 %", "mean"]
    left, right = (p.get_x() for p in (ax.patches[0], ax.patches[2]))
    assert right - left == pytest.approx(0.4)
    assert ax.get_ylabel() == "points"


def test_interval_points_stand_side_by_side_with_their_intervals() -> None:
    ax = new_figure(6, 4).add_subplot()
    nan = float("nan")
    series = {"one": ([0.6, nan], [0.5, nan], [0.8, nan]), "two": ([0.7, 0.4], [0.6, 0.3], [0.9, 0.5])}
    assert interval_points(ax, ["a", "b"], series, 0.5, "AUCC") is ax
    one, two = (next(line for line in ax.lines if line.get_label() == name) for name in series)
    assert two.get_ydata().tolist() == [0.7, 0.4]
    assert (two.get_xdata() - one.get_xdata()).tolist() == pytest.approx([0.3, 0.3])
    assert [s[:, 1].tolist() for s in ax.collections[1].get_segments()] == [[0.6, 0.9], [0.3, 0.5]]
    assert any(set(line.get_ydata()) == {0.5} for line in ax.lines)
    assert [t.get_text() for t in ax.get_xticklabels()] == ["a", "b"]
    ax.figure.canvas.draw()


def test_arm_mix_stacks_to_one() -> None:
    ax = new_figure(6, 4).add_subplot()
    shares = {"one": [[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]], "two": [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]}
    assert arm_mix(ax, shares, ["control", "a", "b"], ["10 %", "20 %"]) is ax
    tops: dict[float, float] = {}
    for patch in ax.patches:
        tops[round(patch.get_x(), 6)] = tops.get(round(patch.get_x(), 6), 0.0) + patch.get_height()
    assert list(tops.values()) == pytest.approx([1.0] * 4)
    by_arm = {to_hex(p.get_facecolor()) for p in ax.patches}
    assert len(by_arm) == 3
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["b", "a", "control"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["one", "two", "one", "two"]
    assert [t.get_text() for t in ax.texts] == ["10 %", "20 %"]


def test_methods_look_different() -> None:
    styles = [tuple(method_style(i).values()) for i in range(12)]
    assert len(set(styles)) == len(styles)
    assert len(set(COLORS)) == len(COLORS)


def test_drawing_leaves_no_trace() -> None:
    from matplotlib import pyplot as plt

    before = mpl.rcParams.copy()
    draw(estimates={"one": ([1.9, 2.1], [1.5, 1.6], [2.2, 2.8])})
    assert plt.get_fignums() == []
    assert mpl.rcParams == before
