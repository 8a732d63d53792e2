"""Differences of features between arms: loops over users, planted differences, and columns that cannot be compared."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from trial_cases import random_trial, remade, user_of

from lightning_budget.trial import IdFeature, Logged, check_balance, logged_trial
from lightning_budget.trial.columns import feature_columns


def columns_by_hand(trial: Logged) -> dict[str, np.ndarray]:
    city, viewed = trial.ids
    out = {name: trial.dense[:, i].double().numpy() for i, name in enumerate(trial.dense_names)}
    assert viewed.offsets is not None
    lists = [set(viewed.values[a:b].tolist()) for a, b in zip(viewed.offsets[:-1], viewed.offsets[1:], strict=True)]
    out["viewed (entries)"] = viewed.offsets.diff().double().numpy()
    out |= {city.label(level): (city.values.numpy() == level).astype(float) for level in (1, 2, 3)}
    return out | {viewed.label(v): np.array([float(v in entries) for entries in lists]) for v in range(1, 6)}


def phi_by_loop(trial: Logged, x: np.ndarray, j: int) -> np.ndarray:
    """``[users]`` parts of the standardised difference of arm j from control."""
    t, w, user = trial.treatment.numpy(), 1 / trial.propensity.double().numpy(), user_of(trial)
    x = (x - x.mean()) / x.std()
    out = np.zeros(user.max() + 1)
    for i in range(len(t)):
        if t[i] == j:
            out[user[i]] += w[i] * x[i] / w[t == j].sum()
        if t[i] == 0:
            out[user[i]] -= w[i] * x[i] / w[t == 0].sum()
    return out


@pytest.mark.parametrize("chunk", [1 << 16, 50])
@pytest.mark.parametrize("users", [None, 150])
def test_numbers_are_those_of_a_loop(users: int | None, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("logged", "columns"):
        monkeypatch.setattr(f"lightning_budget.trial.{module}.CHUNK", chunk)
    trial = random_trial(800, 0, rule="smooth", users=users, lists=True)
    columns = columns_by_hand(trial)
    found = check_balance(trial)
    phi = {(name, j): phi_by_loop(trial, x, j) for name, x in columns.items() for j in (1, 2)}
    assert found.tested == len(phi)
    z = {key: part.sum() / math.sqrt((part**2).sum()) for key, part in phi.items()}
    ranked = sorted(z, key=lambda key: -abs(z[key]))
    # The three cities sum to 1, so that their differences are not all free.
    assert [(d.feature, trial.arms.index(d.arm)) for d in found.worst] == ranked[:10]
    for d in found.worst:
        key = d.feature, trial.arms.index(d.arm)
        assert d.smd == pytest.approx(phi[key].sum(), rel=1e-9)
        assert d.z == pytest.approx(z[key], rel=1e-9)
        assert d.p_value == pytest.approx(2 * stats.norm.sf(abs(z[key])), rel=1e-9)
        assert d.p_adjusted == pytest.approx(min(1, d.p_value * len(phi)), rel=1e-9)
    for j, arm in ((1, found.arms[0]), (2, found.arms[1])):
        parts = np.stack([phi[name, j] for name in columns])
        covariance = parts @ parts.T
        assert arm.df == len(columns) - 1 == np.linalg.matrix_rank(covariance, hermitian=True)
        wanted = parts.sum(1) @ np.linalg.pinv(covariance, rcond=1e-10, hermitian=True) @ parts.sum(1)
        assert arm.chi_square == pytest.approx(wanted, rel=1e-6)
        assert arm.p_value == pytest.approx(stats.chi2.sf(arm.chi_square, arm.df), rel=1e-9)
    assert found.p_value == pytest.approx(min(1, 2 * min(a.p_value for a in found.arms)))


def test_a_planted_difference_is_named() -> None:
    trial = random_trial(20_000, 1)
    dense = trial.dense.clone()
    dense[:, 1] += 0.1 * (trial.treatment == 2)
    found = check_balance(remade(trial, dense=dense))
    worst = found.worst[0]
    assert (worst.feature, worst.arm) == ("basket", "high")
    assert worst.smd == pytest.approx(0.1, abs=0.04)
    assert worst.p_adjusted < 1e-4
    assert found.p_value < 1e-4
    assert "feature 'basket' differs by +0.1" in found.verdict().text
    assert "threshold 0.001" in found.verdict().text
    assert check_balance(trial).verdict().ok


def test_many_small_differences_together() -> None:
    g = torch.Generator().manual_seed(0)
    n, d = 20_000, 40
    t = torch.randint(0, 2, (n,), generator=g)
    dense = torch.randn(n, d, generator=g) + 0.04 * t[:, None]
    half = torch.full((n,), 0.5)
    found = check_balance(logged_trial(("a", "b"), t, half, half, half, dense, tuple(f"x{i}" for i in range(d))))
    assert found.p_value < 1e-6
    assert found.p_value < 1e-3 * found.worst[0].p_adjusted


def test_a_known_rule_is_no_difference_and_an_unknown_one_is() -> None:
    trial = random_trial(20_000, 2, rule="smooth")
    assert check_balance(trial).verdict().ok
    unknown = remade(trial, propensity=torch.full((len(trial),), 1 / 3))
    assert check_balance(unknown).worst[0].feature == "age"
    assert not check_balance(unknown).verdict().ok


def test_a_user_with_many_rows_is_one_draw() -> None:
    # 100 users of 100 rows each, arms by user: by rows, differences of users' features would look certain.
    trial = random_trial(10_000, 3, users=100, by_user=True)
    assert check_balance(trial).verdict().ok
    assert not check_balance(remade(trial, user=None)).verdict().ok


def test_columns_that_tell_nothing_are_left_out() -> None:
    trial = random_trial(4000, 4)
    dense = torch.full((4000, 2), 0.1)
    dense[int((trial.treatment == 0).nonzero()[0]), 1] = 1e4
    found = check_balance(remade(trial, dense=dense, dense_names=("constant", "one_row"), ids=()))
    assert (found.tested, found.untested) == (0, 4)
    assert found.verdict().ok
    none = check_balance(remade(trial, dense=None, dense_names=(), ids=()))
    assert none.verdict().text == "no feature to compare"


def test_rare_levels_are_pooled() -> None:
    g = torch.Generator().manual_seed(0)
    values = torch.where(torch.rand(6000, generator=g) < 0.5, 1, torch.randint(2, 500, (6000,), generator=g))
    trial = remade(random_trial(6000, 5), ids=(IdFeature("shop", values, 500),))
    columns = feature_columns(trial)
    assert columns.names[2:] == ("shop=0", f"shop=rare ({len(values.unique()) - 1} levels)")
    assert float(columns.mean[2]) == pytest.approx(float((values == 1).double().mean()))
    assert float(columns.mean[2] + columns.mean[3]) == pytest.approx(1)


def test_large_means_lose_no_digits() -> None:
    trial = random_trial(5000, 6)
    shifted = remade(trial, dense=trial.dense.double() + 1e7, ids=())
    plain = remade(trial, dense=trial.dense.double(), ids=())
    assert [d.z for d in check_balance(shifted).worst] == pytest.approx(
        [d.z for d in check_balance(plain).worst], rel=1e-6
    )


def test_arms_without_rows_and_plain_json() -> None:
    trial = random_trial(600, 7)
    found = check_balance(remade(trial, arms=(*trial.arms, "never")))
    assert [a.arm for a in found.arms] == ["low", "high"]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["tested"] == found.tested
