from __future__ import annotations

import math

import pytest
import torch
from metrics_reference import predictions, random_trial, rng

from lightning_budget.allocation.compiled import SWITCH
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import (
    bootstrap_curves,
    cost_curve,
    matched_interval,
    paired_difference,
    paired_oracle_difference,
    poisson,
    poisson_weights,
    policy_curve,
)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def case(seed, users=300, arms=4, integers=True):
    generator = rng(seed)
    a, b = (predictions(generator, users, arms, integers) for _ in range(2))
    trial = random_trial(generator, users, arms)
    user = torch.randint(-(2**62), 2**62, (-(-users // 2),), generator=generator)[torch.arange(users) // 2]
    return a, b, trial, user


def rows_of(trial):
    return {k: trial[k] for k in ("value", "cost", "propensity")}


def test_weights_are_poisson_and_independent():
    counts = poisson_weights(torch.arange(100_000), 6, seed=3).double()
    for k in range(5):
        p = math.exp(-1) / math.factorial(k)
        share = (counts == k).double().mean(1)
        assert (share - p).abs().max() < 4.5 * (p * (1 - p) / 100_000) ** 0.5
    assert torch.corrcoef(counts).fill_diagonal_(0).abs().max() < 4.5 / 100_000**0.5
    neighbours = torch.corrcoef(torch.stack([counts[0, :-1], counts[0, 1:]]))[0, 1]
    assert neighbours.abs() < 4.5 / 100_000**0.5
    other = poisson_weights(torch.arange(100_000), 1, seed=4).double()
    assert torch.corrcoef(torch.cat([counts[:1], other]))[0, 1].abs() < 4.5 / 100_000**0.5


def test_weights_are_the_published_hash():
    """SplitMix64's and MurmurHash3's finalisers in exact integers, for a few users and resamples."""
    mask, low, golden = (1 << 64) - 1, (1 << 32) - 1, 0x9E3779B97F4A7C15

    def mix(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    def half(user, resample):
        hashed = mix((user * golden + mix(seed)) & mask)
        x = (hashed & low) ^ mix((mix(seed) + (resample // 2 + 1) * golden) & mask) & low
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & low
        x = ((x ^ (x >> 13)) + (hashed >> 32)) & low
        x = (x * 0xC2B2AE35) & low
        return ((x ^ (x >> 16)) >> (16 * (resample % 2))) & 0xFFFF

    seed, users = 11, [-5, 0, 7, 2**62, -(2**63), *range(100, 140)]
    edges = [sum(math.exp(-1) / math.factorial(i) for i in range(k + 1)) * 2**16 for k in range(8)]
    expected = [[sum(half(u, r) >= edge - 0.5 for edge in edges) for u in users] for r in range(3)]
    assert poisson_weights(torch.tensor(users), 3, seed).tolist() == expected


def test_weights_have_the_mean_of_one_exactly():
    assert sum(65536 - edge for edge in poisson.EDGES) == 65536


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("users", [1, 3, 40, 700])
@pytest.mark.parametrize("threads", [1, 2])
def test_one_sweep_equals_resample_by_resample(normalization, integers, users, threads, monkeypatch):
    a, b, trial, _ = case(users, users=users, arms=3, integers=integers)
    user = torch.arange(users) // 2
    budgets = [0.9, 0.05, 0.3, 0.3, 1e9, 0.5]
    one, two = (matched_interval(*x, trial["treatment"]) for x in (a, b))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        settings = {"budgets": budgets, "resamples": 31, "seed": 4}
        fast = bootstrap_curves(one, user, **rows_of(trial), **settings, normalization=normalization)
        true = paired_oracle_difference(a, b, *a, user, **settings)
        monkeypatch.setenv(SWITCH, "0")
        slow = bootstrap_curves(one, user, **rows_of(trial), **settings, normalization=normalization)
        assert_close(fast, slow)
        assert_close(true.high, paired_oracle_difference(a, b, *a, user, **settings).high)
        assert torch.equal(two.lower, matched_interval(*b, trial["treatment"]).lower)
    finally:
        torch.set_num_threads(before)


def test_weights_belong_to_the_user_in_any_order_and_shard():
    user = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=rng(0))[
        torch.randint(0, 1000, (5000,), generator=rng(1))
    ]
    whole = poisson_weights(user, 8, seed=1)
    shuffle = torch.randperm(5000, generator=rng(2))
    assert torch.equal(poisson_weights(user[shuffle], 8, seed=1), whole[:, shuffle])
    assert torch.equal(poisson_weights(user[1234:2345], 3, seed=1), whole[:3, 1234:2345])
    order = user.argsort()
    same = user[order][1:] == user[order][:-1]
    assert same.sum() > 3000
    assert torch.equal(whole[:, order][:, 1:][:, same], whole[:, order][:, :-1][:, same])


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
@pytest.mark.parametrize("integers", [True, False])
def test_each_resample_is_the_curve_of_repeated_rows(normalization, integers, monkeypatch):
    monkeypatch.setattr("lightning_budget.metrics.functional.bootstrap._CHUNK_ELEMENTS", 2500)
    (value_hat, cost_hat), _, trial, user = case(1, integers=integers)
    budgets = [0.1, 0.3, 0.45, 0.9]
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    samples = bootstrap_curves(
        interval, user, **rows_of(trial), budgets=budgets, resamples=25, seed=5, normalization=normalization
    )
    assert samples.shape == (25, 4)
    for counts, sample in zip(poisson_weights(user, 25, seed=5), samples, strict=True):
        rows = torch.repeat_interleave(torch.arange(len(user)), counts.long())
        repeated = {k: x[rows] for k, x in trial.items()}
        curve = cost_curve(value_hat[rows], cost_hat[rows], **repeated, normalization=normalization)
        torch.testing.assert_close(sample, curve.at_budget(budgets).value, rtol=0, atol=1e-9)


def test_empty_denominators_in_a_resample_repeat_a_neighbour():
    (value_hat, cost_hat), _, trial, user = case(2, users=6, arms=3)
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    samples = bootstrap_curves(interval, user, **rows_of(trial), budgets=[0.2, 0.5], resamples=300)
    assert samples.isfinite().all()
    assert samples.abs().max() <= trial["value"].abs().max() + 1e-9


def test_standard_error_equals_the_analytic_one():
    """At λ = 0 the Hájek value is a ratio of means, whose standard error is known."""
    (value_hat, cost_hat), _, trial, _ = case(3, users=4000, integers=False)
    interval = matched_interval(value_hat, cost_hat, trial["treatment"])
    samples = bootstrap_curves(interval, torch.arange(4000), **rows_of(trial), budgets=1e9, resamples=800)
    weight = (interval.lower == 0) * (interval.upper > 0) / trial["propensity"]
    estimate = (weight * trial["value"]).sum() / weight.sum()
    analytic = (weight * (trial["value"] - estimate)).square().sum().sqrt() / weight.sum()
    assert float(samples.std()) == pytest.approx(float(analytic), rel=0.12)
    assert float(samples.mean()) == pytest.approx(
        float(estimate), abs=4 * float(analytic) / 800**0.5 + 0.05 * float(analytic)
    )


def test_rows_of_a_user_widen_the_interval_together():
    """Ten copies of each row under one identity: the standard error is that of the distinct rows, not √10 smaller."""
    (value_hat, cost_hat), _, trial, _ = case(4, users=500, integers=False)
    once = bootstrap_curves(
        matched_interval(value_hat, cost_hat, trial["treatment"]),
        torch.arange(500),
        **rows_of(trial),
        budgets=[0.3],
        resamples=200,
    )
    copies = torch.arange(500).repeat(10)
    interval = matched_interval(value_hat[copies], cost_hat[copies], trial["treatment"][copies])
    tenfold = bootstrap_curves(
        interval, copies, **{k: x[copies] for k, x in rows_of(trial).items()}, budgets=[0.3], resamples=200
    )
    torch.testing.assert_close(tenfold, once, rtol=0, atol=1e-9)


def test_standard_error_at_a_budget_equals_the_spread_of_fresh_trials():
    """The multiplier is estimated too; the bootstrap re-solves it in each resample and so counts that noise."""
    users, arms, budgets = 600, 3, [0.6, 0.9]
    value_hat, cost_hat = predictions(rng(50), users, arms, integers=False)
    fresh, inside = [], []
    for seed in range(150):
        trial = random_trial(rng(seed), users, arms)
        draw = torch.randint(0, users, (users,), generator=rng(9000 + seed))
        arm = trial["treatment"][:, None]
        v, c = value_hat[draw], cost_hat[draw]
        trial["value"], trial["cost"] = v.gather(1, arm)[:, 0] + trial["value"], c.gather(1, arm)[:, 0]
        fresh.append(cost_curve(v, c, **trial).at_budget(budgets).value)
        if seed < 15:
            interval = matched_interval(v, c, trial["treatment"])
            samples = bootstrap_curves(interval, torch.arange(users), **rows_of(trial), budgets=budgets, resamples=150)
            inside.append(samples.std(0))
    ratio = torch.stack(inside).mean(0) / torch.stack(fresh).std(0)
    assert ratio.min() > 0.8
    assert ratio.max() < 1.25


def test_paired_difference_is_the_difference_of_the_two_on_common_resamples():
    a, b, trial, user = case(5)
    budgets = [0.2, 0.4]
    one, two = (matched_interval(*x, trial["treatment"]) for x in (a, b))
    result = paired_difference(one, two, user, **rows_of(trial), budgets=budgets, resamples=100, seed=2)
    points = [cost_curve(*x, **trial).at_budget(budgets).value for x in (a, b)]
    torch.testing.assert_close(result.estimate, points[0] - points[1])
    samples = [bootstrap_curves(x, user, **rows_of(trial), budgets=budgets, resamples=100, seed=2) for x in (one, two)]
    difference = samples[0] - samples[1]
    torch.testing.assert_close(result.low, torch.quantile(difference, 0.025, dim=0))
    torch.testing.assert_close(result.high, torch.quantile(difference, 0.975, dim=0))
    torch.testing.assert_close(result.mean, result.estimate.mean())
    torch.testing.assert_close(result.mean_high, torch.quantile(difference.mean(1), 0.975))
    torch.testing.assert_close(result.mean_low, torch.quantile(difference.mean(1), 0.025))
    nothing = paired_difference(one, one, user, **rows_of(trial), budgets=budgets)
    assert (nothing.low.tolist(), nothing.high.tolist()) == ([0.0, 0.0], [0.0, 0.0])


def test_intervals_do_not_depend_on_the_order_of_rows():
    a, b, trial, user = case(6)
    shuffle = torch.randperm(len(user), generator=rng(1))

    def run(rows):
        intervals = [matched_interval(v[rows], c[rows], trial["treatment"][rows]) for v, c in (a, b)]
        columns = {k: x[rows] for k, x in rows_of(trial).items()}
        return paired_difference(*intervals, user[rows], **columns, budgets=[0.2, 0.5], resamples=50)

    straight, shuffled = run(torch.arange(len(user))), run(shuffle)
    for name in ("estimate", "low", "high", "mean", "mean_low", "mean_high"):
        torch.testing.assert_close(getattr(straight, name), getattr(shuffled, name), rtol=0, atol=1e-9)


def test_oracle_difference_is_the_policy_curves_of_repeated_users():
    a, b, _, user = case(7)
    truth = predictions(rng(70), 300, 4, integers=False)
    budgets = [0.8, 1.3, 2.0]
    result = paired_oracle_difference(a, b, *truth, user, budgets, resamples=30, seed=3)
    points = [policy_curve(*x, *truth).at_budget(budgets).value for x in (a, b)]
    torch.testing.assert_close(result.estimate, points[0] - points[1])
    differences = []
    for counts in poisson_weights(user, 30, seed=3):
        rows = torch.repeat_interleave(torch.arange(300), counts.long())
        value = [policy_curve(v[rows], c[rows], *(x[rows] for x in truth)).at_budget(budgets).value for v, c in (a, b)]
        differences.append(value[0] - value[1])
    samples = torch.stack(differences)
    torch.testing.assert_close(result.low, torch.quantile(samples, 0.025, dim=0), rtol=0, atol=1e-9)
    torch.testing.assert_close(result.mean_high, torch.quantile(samples.mean(1), 0.975), rtol=0, atol=1e-9)


def test_one_row_and_bad_input():
    trial = random_trial(rng(0), 1, 2)
    interval = matched_interval(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 1.0]]), trial["treatment"])
    user = torch.tensor([5])
    assert bootstrap_curves(interval, user, **rows_of(trial), budgets=1.0, resamples=20).isfinite().all()
    for change, message in (
        ({"user": torch.tensor([5.0])}, "int64"),
        ({"user": torch.tensor([5, 6])}, "one entry per row"),
        ({"resamples": 0}, "resamples=0"),
        ({"budgets": [0.0]}, "above 0"),
        ({"normalization": "x"}, "hajek or ipw"),
        (
            {"interval": matched_interval(torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([0, 1]))},
            "interval of shape",
        ),
    ):
        with pytest.raises(InputError, match=message):
            bootstrap_curves(**{"interval": interval, "user": user, **rows_of(trial), "budgets": 1.0, **change})
    with pytest.raises(InputError, match="resamples=0"):
        poisson_weights(user, 0, 0)
    with pytest.raises(InputError, match="level=95"):
        paired_difference(interval, interval, user, **rows_of(trial), budgets=1.0, level=95)
