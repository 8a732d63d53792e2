"""AUCC, AUUC and Qini on all resamples in one sweep: equal to the measures of weighted rows, one resample at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import rng

from lightning_budget.allocation.compiled import SWITCH
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import (
    aucc,
    bootstrap_aucc,
    bootstrap_uplift,
    paired_aucc_difference,
    poisson_weights,
    qini_curve,
    ranking_bootstrap,
    uplift_curve,
)


def case(rows=200, seed=0, levels=0, gain=0.5):
    """Users of several rows, arms 0 to 2 and weights of which some are 0 or small; costs and values of both signs."""
    g = rng(seed)
    x, noise, size = torch.rand(3, rows, generator=g, dtype=torch.float64)
    treatment = torch.arange(rows) % 3
    value = noise - 0.3 + treatment * gain * (x - 0.2)
    cost = noise - 0.2 + treatment * (0.8 - x)
    score = x + 0.4 * noise
    weight = torch.where(size < 0.2, 0.0, 2.5 * size)
    columns = {"treatment": treatment, "value": value, "cost": cost, "weight": weight}
    user = torch.randint(-(2**62), 2**62, (rows,), generator=g)[torch.randint(rows // 2, (rows,), generator=g)]
    return columns, (score * levels).round() if levels else score, user


def outcome_of(columns):
    return {"treatment": columns["treatment"], "outcome": columns["value"]}


def one_by_one(score, user, columns, resamples, seed, arm, parts):
    """AUCC, AUUC and Qini of each resample, by the functions of one weighting."""
    found = []
    for counts in poisson_weights(user, resamples, seed):
        weight = (counts * columns["weight"])[None]
        outcome = {**outcome_of(columns), "weight": weight, "arm": arm}
        area = aucc(**{**columns, "weight": weight}, score=score, arm=arm, parts=parts)
        found.append(torch.cat([area, uplift_curve(score, **outcome).area, qini_curve(score, **outcome).above_random]))
    return torch.stack(found, 1)


def swept(score, user, columns, resamples, seed, arm, parts=200):
    areas = bootstrap_uplift(
        score, user, **outcome_of(columns), resamples=resamples, seed=seed, weight=columns["weight"], arm=arm
    )
    found = bootstrap_aucc(score, user, **columns, resamples=resamples, seed=seed, arm=arm, parts=parts)
    return torch.stack([found, *areas])


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("rows", [6, 30, 700])
@pytest.mark.parametrize("levels", [0, 4, 1e-9])
@pytest.mark.parametrize("parts", [1, 7, 200])
def test_one_sweep_equals_resample_by_resample(rows, levels, parts, monkeypatch):
    columns, score, user = case(rows, rows, levels)
    arguments = (score, user, columns, 21, 5, 2, parts)
    expected = one_by_one(*arguments)
    same(swept(*arguments), expected)
    monkeypatch.setenv(SWITCH, "0")
    monkeypatch.setattr(ranking_bootstrap, "_CHUNK_ELEMENTS", 5 * rows)
    same(swept(*arguments), expected)
    if rows > 6:
        assert expected.isfinite().any(1).all()


small = st.integers(-2, 3)
whole_rows = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), small, small, st.integers(0, 3), st.integers(0, 5)),
    min_size=4,
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(whole_rows, st.integers(1, 30), st.integers(0, 2**40))
def test_whole_numbers_give_the_same_cuts(rows, parts, seed):
    """Ties, zero weights, negative gains, cuts that fall on a row: of whole numbers no rounding can move one."""
    score, treatment, value, cost, weight, user = torch.tensor(rows).T.contiguous()
    treatment[:2] = torch.tensor([0, 1])
    columns = {"treatment": treatment, "value": value, "cost": cost + treatment, "weight": weight.double() / 2}
    arguments = (score, user, columns, 9, seed, None, parts)
    same(swept(*arguments), one_by_one(*arguments))


def test_order_of_rows_and_threads_change_nothing():
    columns, score, user = case(400, levels=20)
    expected = swept(score, user, columns, 33, 3, 1)
    order = torch.randperm(400, generator=rng(1))
    same(swept(score[order], user[order], {k: x[order] for k, x in columns.items()}, 33, 3, 1), expected)
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        same(swept(score, user, columns, 33, 3, 1), expected)
    finally:
        torch.set_num_threads(before)
    # More resamples begin with these, whatever runs they are swept in.
    same(swept(score, user, columns, 600, 3, 1)[:, :33], expected)


def test_several_rankings_are_those_one_by_one():
    columns, score, user = case()
    scores = torch.stack([score, -score, torch.zeros(200)])
    together = swept(scores, user, columns, 16, 0, 1).unbind(1)
    for alone, found in zip(scores, together, strict=True):
        same(found, swept(alone, user, columns, 16, 0, 1))


def test_paired_difference_is_the_difference_of_the_two_on_common_resamples():
    columns, score, user = case(600, gain=2.0)
    shared = {"resamples": 101, "seed": 2, "arm": 1}
    found = paired_aucc_difference(torch.stack([score, -score]), -score, user, **columns, **shared, level=0.9)
    a, b = (bootstrap_aucc(s, user, **columns, **shared) for s in (score, -score))
    difference = (a - b)[(a - b).isfinite()]
    same(found.low[0], torch.quantile(difference, 0.05))
    same(found.high[0], torch.quantile(difference, 0.95))
    same(found.standard_error[0], difference.std())
    assert int(found.undefined[0]) == 101 - len(difference)
    same(found.estimate[0], aucc(**columns, score=score, arm=1) - aucc(**columns, score=-score, arm=1))
    assert [float(x[1]) for x in (found.estimate, found.low, found.high, found.standard_error)] == [0.0] * 4
    alone = paired_aucc_difference(score, -score, user, **columns, **shared, level=0.9)
    assert alone.low.ndim == 0
    assert alone.low == found.low[0]


def test_standard_deviation_is_that_over_trials():
    """Over 200 trials drawn anew it is known to 5 %."""
    over_trials, resampled = [], []
    for seed in range(200):
        columns, score, _ = case(600, seed, gain=2.0)
        columns = {**columns, "weight": torch.ones(600), "cost": columns["cost"] + (columns["treatment"] > 0)}
        over_trials.append(aucc(**columns, score=score, arm=1))
        if seed % 10 == 0:
            own = torch.arange(600)
            resampled.append(bootstrap_aucc(score, own, **columns, resamples=200, arm=1).std())
    assert float(torch.stack(resampled).mean() / torch.stack(over_trials).std()) == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": torch.zeros(19)}, r"\[S, 20\] for S rankings"),
        ({"score": torch.full((20,), torch.nan)}, "20 entries of score"),
        ({"user": torch.arange(20.0)}, "int64"),
        ({"user": torch.arange(19)}, "one integer identity per row"),
        ({"resamples": 0}, "resamples=0"),
        ({"weight": torch.ones(2, 20)}, "one weighting at a time"),
        ({"weight": -torch.ones(20)}, "20 weights are negative"),
        ({"cost": torch.full((20,), torch.inf)}, "20 entries of cost"),
        ({"arm": 3}, "no rows with treatment 3"),
        ({"parts": 0}, "parts=0"),
    ],
)
def test_bad_input(change, message):
    columns, score, user = case(20)
    given = {**columns, "score": score, "user": user, "arm": 1, **change}
    with pytest.raises(InputError, match=message) as error:
        bootstrap_aucc(**given)
    assert "\n" not in str(error.value)
    given["a"] = given.pop("score")
    with pytest.raises(InputError, match=message):
        paired_aucc_difference(**given, b=score)
    with pytest.raises(InputError, match="level=2"):
        paired_aucc_difference(score, score, user, **columns, arm=1, level=2)
