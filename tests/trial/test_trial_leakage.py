"""Features that tell the arm or are an outcome: loops over pairs, planted leaks, and what is no leak."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from trial_cases import random_trial, remade, residuals, user_of

from lightning_budget.trial import IdFeature, Logged, check_leakage
from lightning_budget.trial.dependence import dependence, list_dependence, totals
from lightning_budget.trial.levels import level_sums
from lightning_budget.trial.ranks import arm_auc


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["constant", "smooth"]), st.sampled_from([0.5, 1e-3]))
def test_auc_is_that_of_all_pairs(seed: int, rule: str, grain: float) -> None:
    trial = random_trial(60, seed, rule=rule, users=20)
    x = (trial.dense[:, 0] / grain).round() * grain
    found, _ = arm_auc(trial, x)
    t, w, x = trial.treatment.numpy(), trial.weight.numpy(), x.numpy()
    wins = (x[:, None] > x[None, :]) + 0.5 * (x[:, None] == x[None, :])
    for j in range(3):
        mine, other = (t == j), (t != j)
        if mine.any():
            pairs = np.outer(w[mine], w[other])
            assert float(found[j]) == pytest.approx((wins[mine][:, other] * pairs).sum() / pairs.sum(), rel=1e-9)


def test_auc_without_weights_is_mann_whitneys() -> None:
    trial = random_trial(3000, 0, arms=2)
    trial = remade(trial, propensity=torch.full((3000,), 0.5))
    x = trial.dense[:, 0]
    auc, error = arm_auc(trial, x)
    one, other = x[trial.treatment == 1].numpy(), x[trial.treatment == 0].numpy()
    wanted = stats.mannwhitneyu(one, other, method="asymptotic", use_continuity=False)
    assert float(auc[1]) == pytest.approx(wanted.statistic / len(one) / len(other), rel=1e-9)
    z = float((auc[1] - 0.5) / error[1])
    assert abs(z) == pytest.approx(stats.norm.isf(wanted.pvalue / 2), rel=0.02)


def test_auc_of_rows_of_users() -> None:
    trial = random_trial(500, 1, rule="smooth", users=80)
    x, t, w, user = trial.dense[:, 0].numpy(), trial.treatment.numpy(), trial.weight.numpy(), user_of(trial)
    u = np.array([(w[x < a].sum() + 0.5 * w[x == a].sum()) / w.sum() for a in x])
    auc, error = arm_auc(trial, trial.dense[:, 0])
    for j in range(3):
        a = np.where(t == j, w / w[t == j].sum(), -w / w[t != j].sum())
        sums = np.bincount(user, a * (u - 0.5))
        assert float(auc[j]) - 0.5 == pytest.approx(sums.sum(), rel=1e-9)
        assert float(error[j]) == pytest.approx(math.sqrt((sums**2).sum()), rel=1e-9)


def test_negative_zero_is_zero_and_whole_numbers_sort() -> None:
    trial = random_trial(400, 2, arms=2)
    signs = torch.where(torch.arange(400) % 2 == 0, 0.0, -0.0)
    assert arm_auc(trial, signs)[0].tolist() == [0.5, 0.5]
    x = trial.dense[:, 1]
    assert torch.equal(arm_auc(trial, x)[0], arm_auc(trial, x.double())[0])


def statistic_by_loop(trial: Logged, values: np.ndarray) -> float:
    g, q, user, n = residuals(trial), trial.mean_share().numpy(), user_of(trial), len(trial)
    kappa = (g * q) @ g.T
    other = user[:, None] != user[None, :]
    size = np.bincount(values)
    same = (values[:, None] == values[None, :]) / size[values][:, None]
    return float(((same - 1 / n) * kappa * other).sum())


@pytest.mark.parametrize("users", [None, 60])
@pytest.mark.parametrize("levels", [4, 60])
def test_dependence_is_a_sum_over_pairs(users: int | None, levels: int) -> None:
    trial = random_trial(300, 3, rule="smooth", users=users, levels=levels)
    city = trial.ids[0]
    values = torch.where(torch.arange(300) % 2 == 0, trial.treatment + 1, city.values)  # half of the rows tell
    found = dependence(trial, level_sums(trial, values, levels), totals(trial))
    s = statistic_by_loop(trial, values.numpy())
    assert s > 0
    rows = np.bincount(values, minlength=levels)
    users_at = np.array([len(set(user_of(trial)[values == level])) for level in range(levels)])
    pairs = sum(n * (1 - 1 / u) for n, u in zip(rows, users_at, strict=True) if u > 0)
    assert found.information == pytest.approx(s / 2 / pairs, rel=1e-9)
    assert found.p_value < 1e-3


def test_dependence_of_few_levels_is_pearsons() -> None:
    g = np.random.default_rng(0)
    t, level = torch.from_numpy(g.integers(0, 3, 3000)), torch.from_numpy(g.integers(0, 4, 3000))
    trial = remade(random_trial(3000, 0), treatment=t, propensity=torch.full((3000,), 1 / 3), ids=())
    table = np.zeros((4, 3))
    np.add.at(table, (level.numpy(), t.numpy()), 1)
    size = table.sum(1)
    # Shares are known, not estimated from the counts.
    pearson = ((table - size[:, None] / 3) ** 2 / (size[:, None] / 3)).sum() - stats.chisquare(table.sum(0)).statistic
    found = dependence(trial, level_sums(trial, level, 4), totals(trial))
    assert found.p_value == pytest.approx(stats.chi2.sf(pearson, 6), abs=0.01)


@pytest.mark.parametrize("rule", ["constant", "smooth"])
def test_a_number_that_tells_the_arm_is_named(rule: str) -> None:
    trial = random_trial(20_000, 4, rule=rule)
    dense = trial.dense.clone()
    dense[:, 1] -= 0.3 * (trial.treatment == 1)
    assert check_leakage(trial).verdict().ok
    found = check_leakage(remade(trial, dense=dense))
    first = found.arms[0]
    assert (first.feature, first.arm, first.leaks) == ("basket", "low", True)
    assert first.auc == pytest.approx(stats.norm.cdf(0.3 / math.sqrt(2)), abs=0.02)
    assert first.p_adjusted < 1e-6
    assert [a.feature for a in found.arms if a.leaks] == ["basket"]
    assert "'basket' tells arm 'low' (AUC 0.5" in found.verdict().text
    assert "remove it from the features" in found.verdict().text


def test_a_difference_too_small_to_matter_is_no_leak() -> None:
    trial = random_trial(20_000, 5)
    dense = trial.dense.clone()
    dense[:, 1] += 0.1 * (trial.treatment == 1)
    found = check_leakage(remade(trial, dense=dense))
    assert found.arms[0].p_adjusted < 1e-3
    assert found.verdict().ok


def test_an_id_that_tells_the_arm_is_named_even_if_every_level_is_rare() -> None:
    g = np.random.default_rng(0)
    trial = random_trial(6000, 6, levels=6000)
    codes = trial.treatment.numpy() * 1000 + g.integers(1, 1000, 6000)  # two rows a level, all of one arm
    leak = IdFeature("coupon_code", torch.from_numpy(codes), 4000)
    found = check_leakage(remade(trial, ids=(*trial.ids, leak)))
    assert [a.feature for a in found.arms if a.leaks] == ["coupon_code"]
    assert found.arms[0].information == pytest.approx(1.0, abs=0.15)  # (K − 1) / 2
    some = torch.where(
        torch.rand(6000, generator=torch.Generator().manual_seed(0)) < 0.3, leak.values, trial.ids[0].values % 4000
    )
    weak = check_leakage(remade(trial, ids=(IdFeature("mixed", some, 4000),)))
    assert weak.arms[0].leaks


def test_a_mismatch_of_the_whole_trial_is_no_leak() -> None:
    trial = random_trial(20_000, 7, arms=2)
    wrong = remade(trial, propensity=torch.full((20_000,), 0.5))
    found = check_leakage(wrong)
    assert found.verdict().ok
    assert all(a.p_adjusted > 1e-3 for a in found.arms)


def test_users_who_keep_their_arm_do_not_leak_it() -> None:
    trial = random_trial(5000, 8, users=500, by_user=True)
    assert trial.cluster is not None
    user = IdFeature("user_id", trial.cluster + 1, 501)
    assert check_leakage(remade(trial, ids=(user,))).verdict().ok
    assert not check_leakage(remade(trial, ids=(user,), user=None)).verdict().ok


@pytest.mark.parametrize("users", [None, 2000])
def test_lists(users: int | None) -> None:
    trial = random_trial(6000, 9, users=users, lists=True)
    viewed = trial.ids[1]
    assert check_leakage(trial).verdict().ok
    assert viewed.offsets is not None
    values, row = viewed.values, torch.repeat_interleave(viewed.offsets.diff())
    leaked = torch.where((trial.treatment[row] == 2) & (values == 3), 4, values)
    found = check_leakage(remade(trial, ids=(trial.ids[0], IdFeature("viewed", leaked, 6, viewed.offsets))))
    assert {a.feature for a in found.arms if a.leaks} <= {"viewed=2", "viewed=3"}
    assert "viewed=2" in found.verdict().text


def test_levels_of_lists_are_uniform_without_a_leak() -> None:
    p = []
    for seed in range(120):
        trial = random_trial(1200, seed, lists=True)
        values, row = trial.ids[1].entries()
        found = list_dependence(trial, level_sums(trial, values, 6, row), totals(trial))
        p.append(found.p_value)
    for level in (0.1, 0.3, 0.6, 0.9):
        share = 1 - (1 - level / 5) ** 5
        assert np.mean(np.array(p) <= level) == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 120))


def test_features_that_are_an_outcome() -> None:
    trial = random_trial(3000, 10)
    bought = (trial.value > 0.8).double()
    dense = torch.stack([trial.dense[:, 0], -3 * trial.cost.float() + 1, bought.float()], 1)
    same = IdFeature("bought_label", 1 + bought.long(), 3)
    found = check_leakage(
        remade(trial, value=bought, dense=dense, dense_names=("age", "refund", "bought"), ids=(*trial.ids, same))
    )
    copies = {(c.feature, c.outcome): c.correlation for c in found.outcomes}
    assert copies == {
        ("refund", "cost"): pytest.approx(-1),
        ("bought", "value"): pytest.approx(1),
        ("bought_label", "value"): pytest.approx(1),
    }
    assert "'refund' repeats cost (correlation -1.00000" in found.verdict().text
    assert "threshold 0.999" in found.verdict().text


def test_constants_and_lone_rows_are_no_outcome() -> None:
    trial = random_trial(3000, 11)
    lone = torch.zeros(3000)
    lone[5] = 1.0
    # Cost certain by arm, a constant feature, one row that bought, and a label for every row.
    dense = torch.stack([torch.full((3000,), 0.1), lone], 1)
    labels = IdFeature("order", torch.arange(3000), 3000)
    cost = torch.tensor([0.0, 0.1, 0.3])[trial.treatment]
    found = check_leakage(remade(trial, cost=cost, value=lone, dense=dense, dense_names=("c", "lone"), ids=(labels,)))
    assert found.outcomes == ()


def test_plain_json_and_no_features() -> None:
    trial = random_trial(500, 12, lists=True)
    state = json.loads(json.dumps(check_leakage(trial).to_dict(), allow_nan=False))
    assert {a["feature"].partition("=")[0] for a in state["arms"]} == {
        "age",
        "basket",
        "viewed (entries)",
        "city",
        "viewed",
    }
    assert check_leakage(remade(trial, dense=None, dense_names=(), ids=())).verdict().text == "no feature to look at"
