"""Closed-form standard errors beside the bootstrap, fresh trials, and formulas of textbooks."""

from __future__ import annotations

import pytest
import torch
from metrics_reference import predictions, random_trial, rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import (
    bootstrap_curves,
    cost_curve,
    eom_influence,
    matched_interval,
    normal_interval,
    standard_error,
)

BUDGETS = [0.75, 1.0]
"""Everyone's cheapest arm costs about 0.5 a user."""


def trial_of(seed, users, arms=3):
    """Users drawn from a fixed population whose outcomes are what the predictions say, and noise."""
    value_hat, cost_hat = predictions(rng(50), 5000, arms, integers=False)
    drawn = torch.randint(0, 5000, (users,), generator=rng(seed))
    value_hat, cost_hat = value_hat[drawn], cost_hat[drawn]
    trial = random_trial(rng(1000 + seed), users, arms)
    given = trial["treatment"][:, None]
    trial["value"], trial["cost"] = value_hat.gather(1, given)[:, 0] + trial["value"], cost_hat.gather(1, given)[:, 0]
    return value_hat, cost_hat, trial


def outcomes(trial):
    return {k: trial[k] for k in ("value", "cost", "propensity")}


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
def test_the_spread_of_fresh_trials(normalization):
    fresh, told = [], []
    for seed in range(300):
        value_hat, cost_hat, trial = trial_of(seed, 500)
        fresh.append(cost_curve(value_hat, cost_hat, **trial, normalization=normalization).at_budget(BUDGETS).value)
        interval = matched_interval(value_hat, cost_hat, trial["treatment"])
        influence = eom_influence(interval, **outcomes(trial), budgets=BUDGETS, normalization=normalization)
        torch.testing.assert_close(influence.estimate, fresh[-1])
        told.append(standard_error(influence.rows))
    ratio = torch.stack(told).mean(0) / torch.stack(fresh).std(0)
    # The spread of 300 is known to 4 %.
    assert ratio.min() > 0.85
    assert ratio.max() < 1.15


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_bootstrap(normalization, weighted):
    value_hat, cost_hat, trial = trial_of(1, 6000)
    user = torch.arange(6000) // 3
    weight = torch.rand(6000, generator=rng(1)) + 0.2 if weighted else None
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    settings = {"budgets": BUDGETS, "normalization": normalization, "weight": weight}
    samples = bootstrap_curves(interval, user, **outcomes(trial), **settings, resamples=600)
    error = standard_error(eom_influence(interval, **outcomes(trial), **settings).rows, user)
    assert (error / samples.std(0)).tolist() == pytest.approx([1, 1], abs=0.15)


def test_paired_differences():
    value_hat, cost_hat, trial = trial_of(2, 6000)
    other = value_hat + 0.3 * torch.randn(value_hat.shape, generator=rng(3), dtype=torch.float64)
    one, two = (matched_interval(v, cost_hat, trial["treatment"]) for v in (value_hat, other))
    a, b = (eom_influence(x, **outcomes(trial), budgets=BUDGETS) for x in (one, two))
    user = torch.arange(6000)
    samples = [bootstrap_curves(x, user, **outcomes(trial), budgets=BUDGETS, resamples=600) for x in (one, two)]
    ratio = standard_error(a.rows - b.rows) / (samples[0] - samples[1]).std(0)
    assert ratio.tolist() == pytest.approx([1, 1], abs=0.2)
    assert standard_error(a.rows - a.rows).tolist() == [0, 0]


def test_the_textbook_error_of_a_ratio_where_the_budget_does_not_bind():
    value_hat, cost_hat, trial = trial_of(4, 400)
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    influence = eom_influence(interval, **outcomes(trial), budgets=1e9)
    weight = (interval.lower == 0) * (interval.upper > 0) / trial["propensity"]
    mean = (weight * trial["value"]).sum() / weight.sum()
    error = (weight * (trial["value"] - mean)).square().sum().sqrt() / weight.sum()
    assert float(standard_error(influence.rows)) == pytest.approx(float(error) * (400 / 399) ** 0.5, rel=1e-9)


def test_rows_of_a_user_count_as_one():
    value_hat, cost_hat, trial = trial_of(5, 300)
    copies = torch.arange(300).repeat(4)
    once = eom_influence(matched_interval(value_hat, cost_hat, trial["treatment"]), **outcomes(trial), budgets=BUDGETS)
    interval = matched_interval(value_hat[copies], cost_hat[copies], trial["treatment"][copies])
    four = eom_influence(interval, **{k: x[copies] for k, x in outcomes(trial).items()}, budgets=BUDGETS)
    torch.testing.assert_close(standard_error(four.rows, copies), standard_error(once.rows), rtol=1e-6, atol=0)


def test_the_normal_interval():
    low, high = normal_interval(torch.tensor([1.0]), torch.tensor([0.5]))
    assert (float(low), float(high)) == pytest.approx((1 - 1.959964 * 0.5, 1 + 1.959964 * 0.5), abs=1e-5)


def test_users_must_be_integers():
    with pytest.raises(InputError, match="user has shape"):
        standard_error(torch.ones(1, 3), torch.ones(3))
