"""Counts of arms: scipy's chi-square, loops, uniform p-values without a mismatch, and power with one."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from trial_cases import ARMS, kept_rows, random_trial, remade, residuals, user_of

from lightning_budget.trial import Logged, check_sample_ratio, logged_trial
from lightning_budget.trial.assignment import told_assignment


def of_counts(counts: list[int], shares: list[float]) -> Logged:
    t = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    p = torch.tensor(shares, dtype=torch.float64)[t]
    zero = torch.zeros(len(t))
    return logged_trial(tuple(f"arm_{j}" for j in range(len(counts))), t, p, zero, zero)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0.05, 1)), min_size=2, max_size=6))
def test_constant_propensities_are_scipys_chisquare(arms: list[tuple[int, float]]) -> None:
    counts = [n for n, _ in arms]
    if sum(n == 0 for n in counts) > 1:
        counts = [n + 1 for n in counts]
    shares = np.array([s for _, s in arms]) / sum(s for _, s in arms)
    found = check_sample_ratio(of_counts(counts, shares.tolist()))
    wanted = stats.chisquare(counts, shares * sum(counts))
    assert found.method == "constant"
    assert found.chi_square == pytest.approx(wanted.statistic, rel=1e-9, abs=1e-9)
    assert found.p_value == pytest.approx(wanted.pvalue, rel=1e-9, abs=1e-200)
    assert found.df == len(counts) - 1
    for arm, n, share in zip(found.arms, counts, shares, strict=True):
        assert arm.rows == arm.observed == n
        assert arm.expected == pytest.approx(share * sum(counts))


def test_strata_are_scipys_chisquare_with_bonferroni() -> None:
    trial = random_trial(3000, 1)
    found = check_sample_ratio(trial)
    share = np.arange(1, 4) / 6
    city = trial.ids[0].values.numpy()
    by_label = {s.stratum: s for s in found.strata}
    assert sorted(by_label) == ["city=A", "city=B", "city=C"]
    for level, label in ((1, "city=A"), (2, "city=B"), (3, "city=C")):
        counts = np.bincount(trial.treatment.numpy()[city == level], minlength=3)
        wanted = stats.chisquare(counts, share * counts.sum())
        assert by_label[label].chi_square == pytest.approx(wanted.statistic, rel=1e-9)
        assert by_label[label].p_value == pytest.approx(wanted.pvalue, rel=1e-9)
        assert by_label[label].p_adjusted == pytest.approx(min(1, 3 * wanted.pvalue), rel=1e-9)
    assert found.correction == "bonferroni"
    assert found.strata_tested == 3


def test_small_strata_are_skipped_and_counted() -> None:
    found = check_sample_ratio(random_trial(3000, 1, levels=200))
    assert found.strata_tested == 0
    assert found.strata_skipped == 199


def quadratic_by_loop(trial: Logged, probability: np.ndarray) -> float:
    k = probability.shape[1]
    d, v = np.zeros(k), np.zeros((k, k))
    for t, p in zip(trial.treatment.tolist(), probability, strict=True):
        d += np.eye(k)[t] - p
        v += np.diag(p) - np.outer(p, p)
    return float(d @ np.linalg.pinv(v, rcond=1e-10) @ d)


def test_propensities_by_a_feature() -> None:
    trial = random_trial(2000, 2, rule="city")
    score = 1.0 + (trial.ids[0].values.numpy()[:, None] + np.arange(3)) % 3
    found = check_sample_ratio(trial)
    assert (found.method, found.told_by, found.df) == ("by_feature", "city", 2)
    chi_square = quadratic_by_loop(trial, score / score.sum(1, keepdims=True))
    assert found.chi_square == pytest.approx(chi_square, rel=1e-9)
    assert found.p_value == pytest.approx(stats.chi2.sf(chi_square, 2), rel=1e-9)


def test_two_arms_tell_each_other() -> None:
    trial = random_trial(2000, 3, arms=2, rule="smooth")
    p1 = torch.where(trial.treatment == 1, trial.propensity, 1 - trial.propensity).numpy()
    found = check_sample_ratio(trial)
    assert (found.method, found.df) == ("two_arms", 1)
    z = (trial.treatment.numpy() - p1).sum() / math.sqrt((p1 * (1 - p1)).sum())
    assert found.chi_square == pytest.approx(z**2, rel=1e-9)
    assert found.arms[1].z == pytest.approx(z, rel=1e-9)


def test_weights_where_propensities_cannot_be_told() -> None:
    trial = random_trial(2000, 4, rule="smooth")
    found = check_sample_ratio(trial)
    assert (found.method, found.chi_square, found.df) == ("ipw", None, None)
    t, w = trial.treatment.numpy(), 1 / trial.propensity.numpy()
    for j, arm in enumerate(found.arms):
        mine = w[t == j]
        error = math.sqrt(2000 * ((mine**2).sum() / mine.sum() - 1))
        assert arm.observed == pytest.approx(mine.sum())
        assert arm.expected == 2000
        assert arm.z == pytest.approx((mine.sum() - 2000) / error, rel=1e-9)
    assert found.p_value == pytest.approx(min(1, 3 * min(a.p_value for a in found.arms)))


def test_weights_of_constant_propensities_are_pearsons_z() -> None:
    trial = random_trial(2000, 5, rule="constant")
    p = trial.propensity.clone()
    p[0] *= 1.0001  # no longer constant, and untellable
    z = [a.z for a in check_sample_ratio(remade(trial, propensity=p, ids=())).arms]
    assert z == pytest.approx([a.z for a in check_sample_ratio(trial).arms], abs=1e-3)


def test_float32_propensities_that_round_are_constant() -> None:
    trial = of_counts([333, 333, 334], [1 / 3] * 3)
    assert told_assignment(remade(trial, propensity=trial.propensity.float())).method == "constant"
    assert check_sample_ratio(trial).verdict().ok


def test_rows_of_a_user_are_not_independent() -> None:
    trial = random_trial(3000, 6, users=300, by_user=True)
    g, q, user = residuals(trial), trial.mean_share().numpy(), user_of(trial)
    sums = np.stack([np.bincount(user, g[:, j], minlength=trial.clusters) for j in range(3)], 1)
    effect = ((sums**2) @ q).sum() / ((g**2) @ q).sum()
    found = check_sample_ratio(trial)
    assert found.design_effect == pytest.approx(effect, rel=1e-9)
    assert 8 < effect < 14  # Σ n_u² / N of Poisson(10) rows a user is 11
    assert found.chi_square == pytest.approx(check_sample_ratio(remade(trial, user=None)).chi_square / effect, rel=1e-9)  # type: ignore[operator]


@pytest.mark.parametrize("case", [{"rule": "constant"}, {"rule": "city"}, {"rule": "smooth"}], ids=str)
def test_a_thinned_arm_is_found(case: dict) -> None:
    trial = random_trial(20_000, 7, **case)
    g = np.random.default_rng(0)
    thinned = kept_rows(trial, (trial.treatment.numpy() != 1) | (g.random(len(trial)) < 0.85))
    assert check_sample_ratio(trial).verdict().ok
    found = check_sample_ratio(thinned)
    assert found.p_value < 1e-6
    verdict = found.verdict()
    assert not verdict.ok
    assert "arm 'low'" in verdict.text
    assert "threshold 0.001" in verdict.text


def test_a_stratum_alone_is_found_and_named() -> None:
    trial = random_trial(20_000, 8, levels=11)
    g = np.random.default_rng(0)
    lost = (trial.treatment.numpy() == 1) & (trial.ids[0].values.numpy() == 2) & (g.random(len(trial)) < 0.35)
    found = check_sample_ratio(kept_rows(trial, ~lost))
    assert found.strata[0].stratum == "city=B"
    assert found.strata[0].worst_arm == "low"
    assert found.strata[0].p_adjusted < 1e-4
    assert not found.verdict().ok


def test_propensities_that_do_not_sum_to_one() -> None:
    found = check_sample_ratio(of_counts([500, 500], [0.5, 0.4]))
    assert found.propensity_sum == pytest.approx(0.9)
    assert "sum to 0.9 (must be 1 ± 0.001)" in found.verdict().text


def test_an_arm_without_rows_was_expected_to_have_some() -> None:
    trial = of_counts([500, 500, 0], [0.4, 0.4, 0.2])
    found = check_sample_ratio(trial)
    assert found.arms[2].expected == pytest.approx(200)
    assert found.p_value < 1e-20


def test_plain_json() -> None:
    for rule in ("constant", "smooth"):
        state = json.loads(json.dumps(check_sample_ratio(random_trial(500, 9, rule=rule)).to_dict(), allow_nan=False))
        assert [a["arm"] for a in state["arms"]] == list(ARMS[:3])
        assert ("chi_square" in state) == (rule == "constant")
