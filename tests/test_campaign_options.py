"""What the campaign's options do, and that its oracle stays the mean of what is drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lightning_budget.campaign import SPLITS, Campaign, Exposures
from lightning_budget.campaign.drift import Drift
from lightning_budget.campaign.population import activity, top_share, traits_of
from lightning_budget.campaign.randomization import targeted
from lightning_budget.errors import InputError

USUAL = Campaign(train_rows=40_000, val_rows=8_000, test_rows=8_000, users=2_000)
OPTIONS: dict[str, dict[str, Any]] = {
    "drift": {"drift_base": 0.8, "drift_sensitivity": -0.6, "weekly_base": 0.5, "weekly_sensitivity": 0.4},
    "repeat": {"repeat": 1.8},
    "spend_tail": {"spend_tail": 3.0},
    "zero_inflation": {"zero_inflation": 0.35, "newcomers": 0.0},
    "targeted": {"propensity": "targeted"},
}
OPTIONS["all"] = {k: v for option in list(OPTIONS.values()) for k, v in option.items()}
# A sound campaign passes a test at this level all but once in 30,000 times.
Z = 4.2


@pytest.fixture(scope="module")
def usual() -> Exposures:
    return USUAL.exposures("train", 0)


def z_of_mean(x: NDArray[Any]) -> float:
    x = x.astype(np.float64)
    return float(x.mean() / x.std() * len(x) ** 0.5)


def same_features(a: Exposures, b: Exposures) -> bool:
    names = ("user", "day", "city", "tier", "device", "dense", "treatment", "propensity")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("option", OPTIONS)
def test_outcomes_average_to_the_oracle(option: str) -> None:
    campaign = replace(USUAL, **OPTIONS[option], seed=1)
    x = campaign.exposures("train", 0)
    for outcome in ("value", "cost"):
        observed, truth = getattr(x, outcome), getattr(x, f"true_{outcome}")
        for j in range(len(campaign.face_values)):
            rows = x.treatment == j
            if not truth[:, j].any():
                assert not observed[rows].any()
                continue
            error = observed[rows] - truth[rows, j]
            assert abs(z_of_mean(error)) < Z
            # Not on average alone: low or high, early or late, of busy users or others, too.
            for by in (truth[rows, j], x.day[rows], x.user[rows]):
                z = np.array([z_of_mean(error[part]) for part in np.array_split(by.argsort(kind="stable"), 5)])
                assert stats.chi2.sf((z**2).sum(), len(z)) > 1e-5
            weighted = rows / x.propensity * observed
            assert abs(z_of_mean(weighted - truth[:, j])) < Z


# Drift


def purchase(campaign: Campaign, split: str = "train") -> NDArray[np.float64]:
    """``[n, K]`` logits of purchase, from values at two baselines: they are in the ratio of the probabilities."""
    low, high = (
        replace(campaign, purchase_logit=campaign.purchase_logit + d).exposures(split, 0).true_value.astype(np.float64)
        for d in (0, 1.0)
    )
    r, e = high / low, np.e
    p = (e - r) / (r * (e - 1))
    return np.log(p / (1 - p))


def test_drift_moves_logit_and_sensitivity_as_stated(usual: Exposures) -> None:
    campaign = replace(USUAL, **OPTIONS["drift"])
    assert same_features(usual, campaign.exposures("train", 0))
    before, after, day = purchase(USUAL), purchase(campaign), usual.day

    def stated(linear: float, weekly: float) -> NDArray[np.float64]:
        return linear * day / 13 + weekly * np.sin(2 * np.pi * day / 7)

    np.testing.assert_allclose(after[:, 0] - before[:, 0], stated(0.8, 0.5), atol=1e-4)
    # The logit is base + s h, and s + 0.3 the exponential of what drifts.
    kappa = traits_of(usual.user, USUAL.users, USUAL.seed).half_dose
    h = 11 / (11 + kappa)
    s, moved = (((x[:, 4] - x[:, 0]) / h) + 0.3 for x in (before, after))
    # Float32 tells probabilities near 1 apart no more.
    near = np.maximum(before[:, 4], after[:, 4]) < 3
    assert near.mean() > 0.9
    np.testing.assert_allclose(moved[near], (s * np.exp(stated(-0.6, 0.4)))[near], atol=2e-3)


def test_later_splits_see_another_world() -> None:
    campaign = replace(USUAL, drift_sensitivity=-1.0)

    def lift(of: Campaign, split: str) -> float:
        x = of.exposures(split, 0)
        return float((x.true_value[:, 3] - x.true_value[:, 0]).mean())

    share = {split: lift(campaign, split) / lift(USUAL, split) for split in SPLITS}
    assert 1 > share["train"] > share["val"] + 0.1 > share["test"] + 0.1
    assert share["test"] < 0.6


def test_drift_of_a_trial_of_one_day_each() -> None:
    drift = Drift(3, base=1.0, weekly_sensitivity=2.0)
    np.testing.assert_allclose(drift.of_base(np.arange(3)), [0, 0.5, 1])
    np.testing.assert_allclose(drift.of_sensitivity(np.arange(3)), 2 * np.sin(2 * np.pi * np.arange(3) / 7))


# Activity


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.001, 2.0, 3.0])
def test_top_share_is_the_inverse_of_activity(exponent: float) -> None:
    q = np.linspace(0.001, 0.999, 50)
    x = activity(q, exponent)
    np.testing.assert_allclose([top_share(float(s), exponent) for s in x], q, rtol=1e-9)
    assert top_share(0.0, exponent) == pytest.approx(0, abs=1e-12)
    assert top_share(1.0, exponent) == pytest.approx(1)


@pytest.mark.parametrize(("exponent", "stated"), [(0.0, 0.01), (0.5, 0.06), (1.0, 0.25), (1.5, 0.55), (2.0, 0.77)])
def test_the_busiest_hundredth_makes_the_stated_share_of_rows(exponent: float, stated: float) -> None:
    campaign = replace(USUAL, users=10_000, newcomers=0.0, repeat=exponent)
    top = campaign.exposures("train", 0).user < campaign.users // 100
    share = top_share(0.01, exponent)
    assert share == pytest.approx(stated, abs=0.005)
    assert abs(top.mean() - share) < Z * (share * (1 - share) / len(top)) ** 0.5


# Zero inflation


def test_zero_inflation_takes_its_share_from_some_users(usual: Exposures) -> None:
    z = 0.35
    found = replace(USUAL, zero_inflation=z).exposures("train", 0)
    assert same_features(usual, found)
    able = found.true_value[:, 0].astype(np.float64) / usual.true_value[:, 0]
    np.testing.assert_allclose(found.true_value, usual.true_value * able[:, None], rtol=1e-5)
    np.testing.assert_allclose(found.true_cost, usual.true_cost * able[:, None], rtol=1e-5)
    # One π a user, V^((1 − z) / z) with V uniform.
    users, first = np.unique(found.user, return_index=True)
    lapse = 1 - able[first]
    np.testing.assert_allclose(able, 1 - lapse[np.searchsorted(users, found.user)], atol=1e-6)
    assert stats.kstest(np.maximum(lapse, 0) ** (z / (1 - z)), "uniform").pvalue > 1e-4
    assert abs(lapse.mean() - z) < Z * lapse.std() / len(lapse) ** 0.5
    # Purchases are taken away, none is changed.
    lost = (found.value == 0) & (usual.value > 0)
    assert np.array_equal(found.value[~lost], usual.value[~lost])
    bought = usual.value > 0
    assert abs(z_of_mean((lost - (1 - able))[bought])) < Z


# Spend


@pytest.mark.parametrize("index", [1.3, 2.5])
def test_spend_tail_is_a_pareto_factor_of_mean_one(index: float, usual: Exposures) -> None:
    found = replace(USUAL, spend_tail=index).exposures("train", 0)
    assert same_features(usual, found)
    assert np.array_equal(found.true_value, usual.true_value)
    assert np.array_equal(found.cost, usual.cost)
    bought = usual.value > 0
    assert np.array_equal(bought, found.value > 0)
    factor = found.value[bought].astype(np.float64) / usual.value[bought]
    # P(W > w) = (least / w)^α has the mean least · α / (α − 1) = 1.
    least = (index - 1) / index
    assert factor.min() >= least * (1 - 1e-6)
    assert stats.kstest(factor, stats.pareto(index, scale=least).cdf).pvalue > 1e-4
    assert stats.pareto(index, scale=least).mean() == pytest.approx(1)


# Propensities


@pytest.mark.parametrize("face_values", [(0.0, 5.0), (0, 2, 4, 7, 11)], ids=len)
def test_targeted_propensities_are_a_function_of_the_features(face_values: tuple[float, ...]) -> None:
    campaign = replace(USUAL, face_values=face_values, propensity="targeted", propensity_floor=0.08)
    x, k = campaign.exposures("train", 0), len(face_values)
    p = targeted(x.dense, np.asarray(face_values), 0.08)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)
    assert p.min() >= 0.08
    np.testing.assert_array_equal(x.propensity, p[np.arange(len(p)), x.treatment].astype(np.float32))
    share, frequency = x.dense[:, 5].astype(np.float64), x.dense[:, 1].astype(np.float64)
    for j in range(k):
        error = (x.treatment == j) - p[:, j]
        for weight in (1, share - share.mean(), frequency - frequency.mean(), x.true_value[:, 0]):
            assert abs(z_of_mean(error * weight)) < Z
    # The largest coupon goes to bargain hunters, who would buy less without one.
    given = x.treatment == k - 1
    assert share[given].mean() > share[x.treatment == 0].mean() + 0.1
    assert z_of_mean(x.true_value[given, 0] - x.true_value[x.treatment == 0, 0].mean()) < -5


def test_targeted_propensities_change_smoothly() -> None:
    # Ten thousandths of a share at a time, no probability jumps.
    dense = np.zeros((1_001, 8), np.float32)
    dense[:, 5] = np.linspace(0, 1, 1_001)
    p = targeted(dense, np.array([0.0, 2.0, 4.0]), 0.05)
    assert np.abs(np.diff(p, axis=0)).max() < 3e-3
    assert np.ptp(p[:, 2]) > 0.3


# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"repeat": -0.1}, "repeat=-0.1; allowed: 0 to 3"),
        ({"repeat": "much"}, "repeat='much'; allowed: a number"),
        ({"zero_inflation": 1.0}, r"zero_inflation=1.0; allowed: a share in \[0, 1\)"),
        ({"zero_inflation": float("nan")}, "zero_inflation=nan"),
        ({"spend_tail": 1.0}, "spend_tail=1.0; allowed: a tail index above 1"),
        ({"spend_tail": float("inf")}, "spend_tail=inf"),
        ({"spend_tail": "heavy"}, "spend_tail='heavy'; allowed: a number"),
        ({"drift_base": 5.0}, "drift_base=5.0"),
        ({"drift_sensitivity": float("nan")}, "drift_sensitivity=nan"),
        ({"weekly_base": True}, "weekly_base=True; allowed: a number"),
        ({"weekly_sensitivity": -9}, "weekly_sensitivity=-9"),
        ({"propensity": "random"}, "propensity='random'; allowed: uniform, tiers, targeted"),
        ({"propensity": "targeted", "uniform": False}, "uniform=false with propensity=targeted"),
        ({"propensity": "targeted", "propensity_floor": 0.2}, "propensity_floor=0.2 for 5 arms; allowed: above 0"),
        ({"propensity": "targeted", "propensity_floor": 0.0}, "propensity_floor=0.0"),
        ({"uniform": "no"}, "uniform='no'; allowed: true, false"),
    ],
    ids=str,
)
def test_options_out_of_range(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Campaign(**given)
