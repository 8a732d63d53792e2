"""EOM against the truth it estimates: simulated trials with known means."""

from __future__ import annotations

import pytest
import torch
from metrics_reference import random_trial, rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import (
    control_value,
    eom_hajek,
    eom_ipw,
    policy_curve,
    uniform_curve,
    uniform_true_curve,
)

USERS, ARMS = 500, 4


@pytest.fixture(scope="module")
def world():
    generator = rng(21)
    value = torch.rand(USERS, ARMS, generator=generator, dtype=torch.float64).cumsum(1) + 2
    cost = torch.rand(USERS, ARMS, generator=generator, dtype=torch.float64).cumsum(1)
    noise = torch.randn(2, USERS, ARMS, generator=generator, dtype=torch.float64) * 0.3
    return value, cost, value + noise[0], cost * (1 + noise[1].abs())


def trial_of(world, seed):
    """Arms drawn with unequal probabilities that differ between users; noisy outcomes around the truth."""
    generator = rng(1000 + seed)
    drawn = random_trial(generator, USERS, ARMS)
    arm = drawn["treatment"][:, None]
    noise = torch.randn(USERS, generator=generator, dtype=torch.float64)
    drawn["value"] = world[0].gather(1, arm)[:, 0] + noise
    drawn["cost"] = world[1].gather(1, arm)[:, 0] * 2 * torch.rand(USERS, generator=generator, dtype=torch.float64)
    return drawn


def test_ipw_is_unbiased_at_fixed_multipliers(world):
    true_value, true_cost, value_hat, cost_hat = world
    multipliers = [0.0, 0.3, 0.8, 1.5, 4.0]
    truth = policy_curve(value_hat, cost_hat, true_value, true_cost).at_multiplier(multipliers)
    points = [eom_ipw(value_hat, cost_hat, **trial_of(world, s), multiplier=multipliers) for s in range(200)]
    for name in ("value", "spend"):
        samples = torch.stack([getattr(p, name) for p in points])
        z = (samples.mean(0) - getattr(truth, name)) / (samples.std(0) / 200**0.5)
        assert z.abs().max() < 3.5, name
        assert samples.std(0).max() < 0.5  # so that the test could tell a bias of a few per cent


def test_hajek_at_budgets_lies_near_the_truth(world):
    true_value, true_cost, value_hat, cost_hat = world
    budgets = [0.7, 1.0, 1.4]
    truth = policy_curve(value_hat, cost_hat, true_value, true_cost).at_budget(budgets).value
    samples = torch.stack(
        [eom_hajek(value_hat, cost_hat, **trial_of(world, s), budgets=budgets).value for s in range(200)]
    )
    # The bias is of second order: well below one trial's standard error.
    assert ((samples.mean(0) - truth).abs() < 0.35 * samples.std(0)).all()


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
def test_uniform_and_control_equal_a_loop_over_arms(world, normalization):
    trial = trial_of(world, 0)
    expected = []
    for arm in range(ARMS):
        weight = (trial["treatment"] == arm) / trial["propensity"]
        mass = weight.sum() if normalization == "hajek" else USERS
        expected.append([float((weight * trial[k]).sum() / mass) for k in ("cost", "value")])
    curve = uniform_curve(**trial, num_treatments=ARMS, normalization=normalization)
    blind = torch.tensor(expected[1:], dtype=torch.float64).mean(0)
    assert curve.spend.tolist() == pytest.approx([expected[0][0], float(blind[0])])
    assert curve.value.tolist() == pytest.approx([expected[0][1], float(blind[1])])
    control = control_value(trial["treatment"], trial["value"], trial["propensity"], normalization)
    assert float(control) == pytest.approx(expected[0][1])


def test_uniform_is_unbiased_and_meets_budgets(world):
    true_value, true_cost, *_ = world
    truth = uniform_true_curve(true_value, true_cost)
    budget = float(truth.spend.mean())
    assert truth.at_budget(budget).value.tolist() == pytest.approx([float(truth.value.mean())])
    assert truth.at_budget(budget).spend.tolist() == [budget]
    samples = torch.stack(
        [uniform_curve(**trial_of(world, s), num_treatments=ARMS, normalization="ipw").value for s in range(200)]
    )
    z = (samples.mean(0) - truth.value) / (samples.std(0) / 200**0.5)
    assert z.abs().max() < 3.5


def test_an_arm_without_rows_is_refused_by_the_references(world):
    trial = trial_of(world, 0)
    kept = {k: x[trial["treatment"] != 0] for k, x in trial.items()}
    with pytest.raises(InputError, match=r"no rows with treatment \[0\]"):
        uniform_curve(**kept, num_treatments=ARMS)
    with pytest.raises(InputError, match=r"no rows with treatment \[0\]"):
        control_value(kept["treatment"], kept["value"], kept["propensity"])
