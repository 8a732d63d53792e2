"""Sums over a grid of multipliers: exact at its points, enclosed between them, the same in any order and path."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import predictions, random_trial, rng

from lightning_budget.allocation.compiled import SWITCH
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import (
    MultiplierGrid,
    bootstrap_curves,
    cost_curve,
    grid_changes,
    grid_curve,
    grid_enclosure,
    grid_points,
    grid_resamples,
    matched_interval,
    poisson_weights,
)

COARSE = MultiplierGrid(-3, 3, 2)
FINE = MultiplierGrid(-20, 20, 1024)
PATHS = ["1", "0"]


def case(seed, users=400, arms=4, integers=False):
    generator = rng(seed)
    value_hat, cost_hat = predictions(generator, users, arms, integers)
    trial = random_trial(generator, users, arms)
    weight = torch.rand(users, generator=generator, dtype=torch.float64).mul(3).floor()
    return value_hat, cost_hat, trial, weight


def outcomes(trial):
    return {k: trial[k] for k in ("value", "cost", "propensity")}


@pytest.mark.parametrize("grid", [COARSE, MultiplierGrid(-2, 1, 1), MultiplierGrid(0, 1, 64)])
def test_how_many_points_lie_below(grid):
    points = grid.points()
    assert len(points) == len(grid)
    assert bool((points.diff() > 0).all())
    finite = points[:-1]
    around = torch.cat([finite, torch.nextafter(finite, finite + 1), torch.nextafter(finite, finite - 1)[1:]])
    x = torch.cat([around, torch.tensor([1e-300, 1e300, 5e-324, torch.finfo(torch.float64).max]).double()])
    assert grid.below(x).tolist() == [int((points < y).sum()) for y in x]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_exact_at_its_points(path, normalization, integers, weighted, monkeypatch):
    monkeypatch.setenv(SWITCH, path)
    value_hat, cost_hat, trial, weight = case(1, integers=integers)
    weight = weight if weighted else None
    exact = cost_curve(value_hat, cost_hat, **trial, normalization=normalization, weight=weight)
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    changes = grid_changes(interval, **outcomes(trial), grid=COARSE, weight=weight)
    total = float(weight.sum()) if weighted else 400.0
    curve = grid_curve(changes, total, COARSE, normalization)
    points = COARSE.points()
    expected, found = exact.at_multiplier(points), curve.at_multiplier(points)
    torch.testing.assert_close(found.spend, expected.spend, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.value, expected.value, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.integers(2, 5),
    st.booleans(),
    st.sampled_from(["hajek", "ipw"]),
    st.sampled_from([COARSE, MultiplierGrid(-3, 3, 16)]),
)
def test_the_exact_curve_lies_within_the_enclosure(seed, users, arms, integers, normalization, grid):
    value_hat, cost_hat, trial, _ = case(seed, users, arms, integers)
    budgets = torch.rand(8, generator=rng(seed), dtype=torch.float64) * 1.3 + 1e-3
    exact = cost_curve(value_hat, cost_hat, **trial, normalization=normalization).at_budget(budgets).value
    changes = grid_changes(matched_interval(value_hat, cost_hat, trial["treatment"]), **outcomes(trial), grid=grid)
    low, high = grid_enclosure(changes, users, budgets, normalization)
    assert bool((low <= exact + 1e-9).all())
    assert bool((exact <= high + 1e-9).all())


def test_the_error_falls_with_the_grid():
    value_hat, cost_hat, trial, _ = case(2, users=20_000)
    # Outcomes that the policy can gain from, so that the curve is curved.
    trial["value"] = value_hat.gather(1, trial["treatment"][:, None])[:, 0]
    budgets = torch.tensor([0.3, 0.5, 0.7])
    exact = cost_curve(value_hat, cost_hat, **trial).at_budget(budgets).value
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    errors, widths = [], []
    for grid in (COARSE, MultiplierGrid(), FINE):
        changes = grid_changes(interval, **outcomes(trial), grid=grid)
        low, high = grid_enclosure(changes, 20_000, budgets)
        errors.append(float((grid_curve(changes, 20_000, grid).at_budget(budgets).value - exact).abs().max()))
        widths.append(float((high - low).max()))
    assert errors[0] > errors[1] > errors[2]
    assert widths[0] > widths[1] > widths[2]
    assert errors[1] < 2e-3
    assert errors[2] < 2e-4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("resamples", [1, 6, 7])
@pytest.mark.parametrize("weighted", [True, False])
def test_resamples_are_those_of_repeated_rows(path, resamples, weighted, monkeypatch):
    monkeypatch.setenv(SWITCH, path)
    value_hat, cost_hat, trial, weight = case(3)
    user = torch.arange(400) // 3
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    weight = weight if weighted else None
    changes, total = grid_resamples(
        interval, user, **outcomes(trial), grid=COARSE, resamples=resamples, seed=9, weight=weight
    )
    assert changes.shape == (resamples, 3, len(COARSE))
    for r, count in enumerate(poisson_weights(user, resamples, seed=9).double()):
        counted = count if weight is None else count * weight
        once = grid_changes(interval, **outcomes(trial), grid=COARSE, weight=counted)
        torch.testing.assert_close(changes[r], once[:3], rtol=0, atol=1e-10)
        assert float(total[r]) == pytest.approx(float(counted.sum()))


def test_a_fine_grid_gives_the_bootstrap_of_the_exact_curve():
    value_hat, cost_hat, trial, _ = case(4, users=3000)
    user, budgets = torch.arange(3000) // 2, [0.3, 0.6]
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    exact = bootstrap_curves(interval, user, **outcomes(trial), budgets=budgets, resamples=20, seed=1)
    changes, total = grid_resamples(interval, user, **outcomes(trial), grid=FINE, resamples=20, seed=1)
    spend, value = grid_points(changes, total)
    from lightning_budget.metrics.functional.walk import first_crossing

    found = first_crossing(spend, value, torch.tensor(budgets, dtype=torch.float64)).value
    assert float((found - exact).abs().max()) < 0.05 * float(exact.std())


def test_sums_add_over_shards_in_any_order():
    value_hat, cost_hat, trial, _ = case(5)
    shuffle = torch.randperm(400, generator=rng(1))
    shards = [shuffle[:123], shuffle[123:124], shuffle[124:]]

    def changes(rows):
        interval = matched_interval(value_hat[rows], cost_hat[rows], trial["treatment"][rows])
        return grid_changes(interval, **{k: x[rows] for k, x in outcomes(trial).items()}, grid=COARSE)

    torch.testing.assert_close(sum(map(changes, shards)), changes(torch.arange(400)), rtol=1e-12, atol=1e-12)


def test_budgets_outside_the_curve():
    value_hat, cost_hat, trial, _ = case(6)
    changes = grid_changes(matched_interval(value_hat, cost_hat, trial["treatment"]), **outcomes(trial), grid=COARSE)
    curve, exact = grid_curve(changes, 400, COARSE), cost_curve(value_hat, cost_hat, **trial)
    for budget in (1e-9, 1e9):
        assert float(curve.at_budget(budget).value) == pytest.approx(float(exact.at_budget(budget).value), abs=1e-12)
    assert float(curve.at_budget(1e9).multiplier) == 0
    assert float(curve.at_budget(1e-9).multiplier) == math.inf


@pytest.mark.parametrize(("arguments", "message"), [((3, 3, 2), "octaves 3 to 3"), ((-3, 3, 6), "cuts=6")])
def test_bad_grids(arguments, message):
    with pytest.raises(InputError, match=message):
        MultiplierGrid(*arguments)
