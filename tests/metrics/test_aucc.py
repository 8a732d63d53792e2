from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import rng

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.aucc import aucc, reward_curve
from lightning_budget.metrics.functional.ranking import predicted_roi


def trial(rows, seed=0):
    """Effects on value and cost that differ between rows; a noisy view of their ratio to rank by."""
    g = rng(seed)
    x, noise = torch.rand(2, rows, generator=g, dtype=torch.float64)
    treatment = (torch.rand(rows, generator=g) < 0.4).long()
    value = noise + treatment * 2 * x
    cost = 0.1 * noise + treatment * (1.5 - x)
    return {"treatment": treatment, "value": value, "cost": cost}, x + 0.3 * noise


def path(order, treatment, value, cost):
    """Running Δcost and Δreward with the arms' rows in the whole sample."""
    share = np.where(treatment == 1, 1 / (treatment == 1).sum(), -1 / (treatment == 0).sum())
    return np.cumsum((share * cost)[order]), np.cumsum((share * value)[order])


def loop(spend, reward, parts, slack=1e-12):
    """AUCC of a path, cut by cut."""
    total = 0.0
    for j in range(1, parts):
        k = 0
        while spend[k] < j / parts * spend[-1] - slack:
            k += 1
        total += reward[k]
    return (total + reward[-1]) / (reward[-1] * (parts + 1))


@pytest.mark.parametrize("parts", [1, 7, 200])
def test_equals_a_loop(parts):
    columns, score = trial(300)
    plain = [columns[name].numpy() for name in ("treatment", "value", "cost")]
    expected = loop(*path(np.argsort(-score.numpy()), *plain), parts, slack=0.0)
    assert float(aucc(**columns, score=score, parts=parts)) == pytest.approx(expected, rel=1e-9)


def test_by_hand():
    # Each pair of a treated row and a control that gives 0 moves Δcost by 1/2, Δreward by 3/4 and then 1/4.
    columns = {
        "treatment": torch.tensor([1, 0, 1, 0]),
        "value": torch.tensor([3, 0, 1, 0]),
        "cost": torch.tensor([1, 0, 1, 0]),
    }
    best_first = torch.tensor([4.0, 3.0, 2.0, 1.0])
    curve = reward_curve(best_first, **columns, parts=4)
    assert curve.spend.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.reward.tolist() == [0, 0.75, 0.75, 1, 1]  # a half is reached by the first row
    assert float(aucc(**columns, score=best_first, parts=4)) == pytest.approx(3.5 / 5)
    assert float(aucc(**columns, score=-best_first, parts=4)) == pytest.approx((0.25 + 0.25 + 1 + 1) / 5)


def test_random_rankings_have_one_half():
    columns, _ = trial(4000)
    draws = torch.stack([aucc(**columns, score=torch.rand(4000, generator=rng(seed))) for seed in range(200)])
    assert abs(float(draws.mean()) - 0.5) < 3 * float(draws.std()) / math.sqrt(200)
    assert float(draws.std()) < 0.02


def test_one_score_for_all_has_one_half():
    columns, _ = trial(4000)
    assert float(aucc(**columns, score=torch.zeros(4000))) == pytest.approx(0.5, abs=1 / 4000)
    small = {name: x[:50] for name, x in columns.items()}
    weight = torch.full((50,), 1 / 50)
    plain = aucc(**small, score=torch.zeros(50))
    torch.testing.assert_close(aucc(**small, score=torch.zeros(50), weight=weight), plain)


def test_ties_enter_in_the_expectation_over_their_orders():
    columns, _ = trial(9, seed=4)
    score = torch.tensor([3, 3, 3, 2, 1, 1, 1, 1, 0])
    plain = [columns[name].numpy() for name in ("treatment", "value", "cost")]
    orders = [
        [*first, 3, *second, 8]
        for first in itertools.permutations(range(3))
        for second in itertools.permutations(range(4, 8))
    ]
    spend, reward = np.mean([path(order, *plain) for order in orders], axis=0)
    for parts in (3, 10, 200):
        expected = loop(spend, reward, parts)
        assert float(aucc(**columns, score=score, parts=parts)) == pytest.approx(expected, rel=1e-9)


rows_of_small_numbers = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)),
    min_size=4,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(rows_of_small_numbers, st.randoms(use_true_random=False))
def test_order_of_rows_and_weights(rows, random):
    score, treatment, value, cost, weight = torch.tensor(rows).T
    treatment[:2] = torch.tensor([0, 1])
    # Whoever is treated earns and costs more than anyone at control: the totals are above 0.
    value, cost = value + 4 * treatment, cost + 4 * treatment
    expected = aucc(treatment, value, cost, score=score, weight=weight, parts=20)
    order = torch.tensor(random.sample(range(len(rows)), len(rows)))
    shuffled = {"score": score[order], "weight": weight[order], "parts": 20}
    torch.testing.assert_close(aucc(treatment[order], value[order], cost[order], **shuffled), expected)
    twice = torch.repeat_interleave(torch.arange(len(rows)), weight)
    repeated = aucc(treatment[twice], value[twice], cost[twice], score=score[twice], parts=20)
    torch.testing.assert_close(repeated, expected, rtol=1e-12, atol=0)


def test_weightings_at_once_are_those_one_by_one():
    columns, score = trial(200)
    weight = torch.poisson(torch.ones(5, 200), generator=rng(1))
    weight[3] = 0.0
    at_once = aucc(**columns, score=score, weight=weight)
    assert at_once.isnan().tolist() == [False, False, False, True, False]
    for r in (0, 1, 2, 4):
        torch.testing.assert_close(at_once[r], aucc(**columns, score=score, weight=weight[r]), rtol=1e-12, atol=0)


def test_rows_of_other_arms_are_left_out():
    columns, score = trial(300)
    arm = torch.where(columns["treatment"] == 1, torch.arange(300) % 2 * 2 + 1, 0)  # arms 0, 1 and 3
    kept = (arm == 0) | (arm == 3)
    expected = aucc(**{k: x[kept] for k, x in columns.items()}, score=score[kept])
    assert float(aucc(**{**columns, "treatment": arm}, score=score, arm=3)) == float(expected)


def test_ranked_by_predicted_gains():
    assert predicted_roi(torch.tensor([1.0, 1.0, -1.0, 2.0]), torch.tensor([0.5, 0.0, -2.0, -1e-9])).tolist() == (
        pytest.approx([2.0, 1e6, 0.5, -2e6])
    )
    columns, score = trial(100)
    cost_gain = torch.rand(100, generator=rng(3)) + 0.1
    by_gains = aucc(**columns, value_gain_hat=score * cost_gain, cost_gain_hat=cost_gain)
    torch.testing.assert_close(by_gains, aucc(**columns, score=score))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.full((20,), torch.nan)}, "20 entries of value are not finite"),
        ({"cost": torch.zeros(20)}, "total Δcost 0"),
        ({"cost": torch.zeros(19)}, "align cost"),
        ({"treatment": torch.arange(20) % 3}, "0 to 2"),
        ({"treatment": torch.zeros(20, dtype=torch.long)}, "no rows with treatment 1"),
        ({"treatment": torch.ones(20)}, "dtype torch.float32"),
        ({"arm": 2}, "no rows with treatment 2"),
        ({"arm": 0}, "arm=0"),
        ({"weight": -torch.ones(20)}, "20 weights are negative"),
        ({"weight": torch.zeros(20)}, "total weight 0"),
        ({"weight": torch.ones(19)}, "align weight"),
        ({"score": torch.full((20,), torch.inf)}, "20 entries of score"),
        ({"score": None}, "one way to rank"),
        ({"value_gain_hat": torch.ones(20)}, "one way to rank"),
        ({"parts": 0}, "parts=0"),
    ],
)
def test_bad_input(change, message):
    columns, score = trial(20)
    with pytest.raises(InputError, match=message) as error:
        aucc(**{**columns, "score": score, **change})
    assert "\n" not in str(error.value)


@pytest.mark.gpu
def test_cuda_gives_the_same():
    columns, score = trial(500)
    score = (10 * score).round()
    on_gpu = aucc(**{k: x.cuda() for k, x in columns.items()}, score=score.cuda())
    torch.testing.assert_close(on_gpu.cpu(), aucc(**columns, score=score), rtol=1e-12, atol=0)
