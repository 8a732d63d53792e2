from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import breakpoints, policy, predictions, random_trial, rng, segments, walk_to

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import eom_poststratified, poststratified_curve


def columns(trial):
    return {k: trial[k] for k in ("treatment", "value", "cost")}


def estimate(value_hat, cost_hat, trial, weight, multiplier):
    """(spend, value) by a loop over arms, or None where an arm in use has no matched row."""
    chosen, given = policy(value_hat, cost_hat, multiplier), trial["treatment"].numpy()
    totals = []
    for name in ("cost", "value"):
        total, y = 0.0, trial[name].numpy()
        for j in range(value_hat.shape[1]):
            users, rows = weight[chosen == j].sum(), (chosen == j) & (given == j)
            if users == 0:
                continue
            if weight[rows].sum() == 0:
                return None
            total += users / weight.sum() * np.average(y[rows], weights=weight[rows])
        totals.append(total)
    return tuple(totals)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.booleans(), st.booleans())
def test_equals_a_loop_over_arms_at_every_multiplier(seed, arms, integers, weighted):
    generator = rng(seed)
    users = 6 + seed % 40
    value_hat, cost_hat = predictions(generator, users, arms, integers)
    trial = random_trial(generator, users, arms)
    weight = torch.rand(users, generator=generator).mul(3).floor().double() if weighted else None
    if weight is not None:
        weight[0] = 1
    counts = np.ones(users) if weight is None else weight.numpy()
    curve = poststratified_curve(value_hat, cost_hat, **columns(trial), weight=weight)
    points = [estimate(value_hat, cost_hat, trial, counts, m) for m in segments(value_hat, cost_hat)]
    found = curve.at_multiplier([float(m) for m in segments(value_hat, cost_hat)])
    for i, expected in enumerate(points):
        if expected is not None:
            assert (float(found.spend[i]), float(found.value[i])) == pytest.approx(expected, abs=1e-10)
    assert bool((curve.multiplier.diff() < 0).all())
    assert math.isinf(float(curve.multiplier[0]))


def test_budgets_are_met_on_its_own_spend():
    value_hat, cost_hat = predictions(rng(3), 60, 3, integers=False)
    trial = random_trial(rng(4), 60, 3)
    steps = [*sorted(breakpoints(value_hat, cost_hat), reverse=True), 0.0]
    middles = [math.inf, *((a + b) / 2 for a, b in pairwise(steps))]
    points = [estimate(value_hat, cost_hat, trial, np.ones(60), m) for m in middles]
    points = [p for p in points if p is not None]
    budgets = [0.4, 0.5]
    met = eom_poststratified(value_hat, cost_hat, **columns(trial), budgets=budgets)
    expected = [walk_to(points, b) for b in budgets]
    torch.testing.assert_close(met.value, torch.tensor([v for _, v in expected], dtype=torch.float64))
    torch.testing.assert_close(met.spend, torch.tensor([c for c, _ in expected], dtype=torch.float64))


def test_arms_given_unevenly_by_chance_do_not_move_it():
    """All outcomes are the arm's own: any number of rows of each arm gives the truth, unlike ipw."""
    value_hat, cost_hat = predictions(rng(5), 400, 3, integers=False)
    trial = random_trial(rng(6), 400, 3)
    worth = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    trial["value"] = worth[trial["treatment"]]
    chosen = torch.as_tensor(policy(value_hat, cost_hat, 0.3))
    found = eom_poststratified(value_hat, cost_hat, **columns(trial), multiplier=0.3)
    assert float(found.value) == pytest.approx(float(worth[chosen].mean()), abs=1e-12)


def test_bad_input():
    value_hat, cost_hat = predictions(rng(1), 20, 3, integers=False)
    trial = columns(random_trial(rng(1), 20, 3))
    with pytest.raises(InputError, match="neither of budgets and multiplier"):
        eom_poststratified(value_hat, cost_hat, **trial)
    with pytest.raises(InputError, match="sample weights from -1"):
        poststratified_curve(value_hat, cost_hat, **trial, weight=torch.full((20,), -1.0))
    trial["value"][3] = math.nan
    with pytest.raises(InputError, match="value has entries that are not finite"):
        poststratified_curve(value_hat, cost_hat, **trial)
