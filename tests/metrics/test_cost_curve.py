from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_reference import breakpoints, estimate, policy, predictions, random_trial, rng, segments, walk_to

from lightning_budget.allocation.compiled import SWITCH
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import CostCurve, cost_curve, eom_hajek, eom_ipw, matched_interval


def matched_at(interval, multiplier):
    lower, upper = interval
    if multiplier == math.inf:
        return upper == math.inf
    return (lower <= multiplier) & (multiplier < upper)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(2, 5))
def test_interval_is_the_policy_at_every_multiplier_with_ties(seed, users, arms):
    generator = rng(seed)
    value, cost = predictions(generator, users, arms, integers=True)
    treatment = torch.randint(0, arms, (users,), generator=generator)
    interval = matched_interval(value, cost, treatment)
    for multiplier in [*segments(value, cost), *breakpoints(value, cost)]:
        expected = policy(value, cost, multiplier) == treatment.numpy()
        assert matched_at(interval, float(multiplier)).tolist() == expected.tolist(), multiplier


def test_interval_is_the_policy_on_reals_and_float32():
    generator = rng(3)
    value, cost = (x.float() for x in predictions(generator, 30, 5, integers=False))
    treatment = torch.randint(0, 5, (30,), generator=generator)
    interval = matched_interval(value, cost, treatment)
    assert interval.lower.dtype == torch.float64
    for multiplier in segments(value, cost):
        expected = policy(value, cost, multiplier) == treatment.numpy()
        assert matched_at(interval, float(multiplier)).tolist() == expected.tolist()


def test_intervals_of_a_users_arms_partition_the_multipliers():
    value, cost = predictions(rng(5), 200, 4, integers=True)
    intervals = [matched_interval(value, cost, torch.full((200,), j)) for j in range(4)]
    for multiplier in (0.0, 0.25, 1 / 3, 0.5, 1.0, 1.7, 2.0, math.inf):
        assert (sum(matched_at(i, multiplier).int() for i in intervals) == 1).all()


def test_equal_cost_arms_and_ties_worked_by_hand():
    value = torch.tensor([[1.0, 3.0, 3.0, 4.0]]).expand(4, 4)
    cost = torch.tensor([[0.0, 1.0, 1.0, 2.0]]).expand(4, 4)
    lower, upper = matched_interval(value, cost, torch.arange(4))
    # Arm 2 equals arm 1 at a higher index; at 2 control and arm 1 tie, and control is cheaper.
    assert lower.tolist() == [2.0, 1.0, 0.0, 0.0]
    assert upper.tolist() == [math.inf, 2.0, 0.0, 1.0]


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_curve_and_budgets_equal_the_loop(normalization, integers, seed):
    generator = rng(seed)
    users, arms = 10 + 10 * seed, 2 + seed
    value_hat, cost_hat = predictions(generator, users, arms, integers)
    trial = random_trial(generator, users, arms)
    curve = cost_curve(value_hat, cost_hat, **trial, normalization=normalization)
    multipliers = segments(value_hat, cost_hat)
    points = [estimate(value_hat, cost_hat, trial, m, normalization) for m in multipliers]
    assert points.count(None) < len(points)
    defined = [p for p in points if p is not None]
    here = curve.at_multiplier([float(m) for m in multipliers])
    for i, expected in enumerate(points):
        if expected is not None:
            assert (float(here.spend[i]), float(here.value[i])) == pytest.approx(expected, abs=1e-12)
    budgets = torch.rand(30, generator=generator, dtype=torch.float64) * 1.2 + 1e-3
    met = curve.at_budget(budgets)
    for i, budget in enumerate(budgets.tolist()):
        assert (float(met.spend[i]), float(met.value[i])) == pytest.approx(walk_to(defined, budget), abs=1e-9)


def test_curve_falls_strictly_from_infinity_and_has_one_point_a_tie():
    value_hat, cost_hat = predictions(rng(0), 5000, 5, integers=True)
    curve = cost_curve(value_hat, cost_hat, **random_trial(rng(1), 5000, 5))
    assert curve.multiplier[0] == math.inf
    assert (curve.multiplier.diff() < 0).all()
    assert (curve.multiplier > 0).all()
    assert set(curve.multiplier[1:].tolist()) <= {float(x) for x in breakpoints(value_hat[:400], cost_hat[:400])}


def test_massive_tie_meets_the_budget_exactly_and_never_overspends():
    users = 1000
    value_hat, cost_hat = torch.tensor([[0.0, 1.0]]).expand(users, 2), torch.tensor([[0.0, 1.0]]).expand(users, 2)
    treatment = torch.arange(users) % 2
    trial = {
        "treatment": treatment,
        "value": treatment * 3.0,
        "cost": treatment * 2.0,
        "propensity": torch.full((users,), 0.5),
    }
    curve = cost_curve(value_hat, cost_hat, **trial)
    assert curve.spend.tolist() == [0.0, 2.0]
    budgets = torch.tensor([0.1, 0.3, 1.0, 1.9, 2.0, 2.5], dtype=torch.float64)
    point = curve.at_budget(budgets)
    assert point.spend.tolist() == [0.1, 0.3, 1.0, 1.9, 2.0, 2.0]
    torch.testing.assert_close(point.value, torch.minimum(budgets, torch.tensor(2.0)) * 1.5)
    assert point.multiplier.tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    # The policy served at the returned price is the cheaper of the two that are mixed.
    assert (curve.at_multiplier(point.multiplier).spend <= budgets).all()


def test_first_crossing_of_a_curve_that_dips():
    curve = CostCurve(
        multiplier=torch.tensor([math.inf, 4.0, 3.0, 2.0, 1.0], dtype=torch.float64),
        spend=torch.tensor([1.0, 3.0, 2.0, 6.0, 5.0], dtype=torch.float64),
        value=torch.tensor([0.0, 2.0, 7.0, 11.0, 20.0], dtype=torch.float64),
    )
    point = curve.at_budget([0.5, 1.0, 2.5, 3.0, 4.0, 6.0, 9.0])
    assert point.value.tolist() == [0.0, 0.0, 1.5, 8.0, 9.0, 20.0, 20.0]
    assert point.spend.tolist() == [1.0, 1.0, 2.5, 3.0, 4.0, 5.0, 5.0]
    assert point.multiplier.tolist() == [math.inf, 4.0, 4.0, 2.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("normalization", ["hajek", "ipw"])
def test_order_of_rows_does_not_matter(normalization):
    value_hat, cost_hat = predictions(rng(2), 400, 4, integers=True)
    trial = random_trial(rng(3), 400, 4)
    shuffle = torch.randperm(400, generator=rng(4))
    a = cost_curve(value_hat, cost_hat, **trial, normalization=normalization)
    shuffled = {k: x[shuffle] for k, x in trial.items()}
    b = cost_curve(value_hat[shuffle], cost_hat[shuffle], **shuffled, normalization=normalization)
    assert torch.equal(a.multiplier, b.multiplier)
    torch.testing.assert_close(a.spend, b.spend, rtol=0, atol=1e-12)
    torch.testing.assert_close(a.value, b.value, rtol=0, atol=1e-12)


def one_row(treatment):
    return {
        "treatment": torch.tensor([treatment]),
        "value": torch.tensor([3.0]),
        "cost": torch.tensor([2.0]),
        "propensity": torch.tensor([0.3]),
    }


def test_one_row():
    value_hat, cost_hat = torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    treated = cost_curve(value_hat, cost_hat, **one_row(1))
    # The row is matched only below 1; above, where hajek has no row, the point repeats it.
    assert treated.multiplier.tolist() == [math.inf, 1.0]
    assert treated.value.tolist() == pytest.approx([3.0, 3.0])
    assert cost_curve(value_hat, cost_hat, **one_row(1), normalization="ipw").value.tolist() == pytest.approx([0, 10])
    control = cost_curve(value_hat, cost_hat, **one_row(0))
    assert control.value.tolist() == pytest.approx([3.0, 3.0])


def test_a_policy_that_no_row_ever_follows_is_zero_not_nan():
    curve = cost_curve(torch.tensor([[0.0, 1.0, -1.0]]), torch.tensor([[0.0, 1.0, 2.0]]), **one_row(2))
    assert (curve.spend.tolist(), curve.value.tolist()) == ([0.0], [0.0])
    assert curve.at_budget(1.0).value.tolist() == [0.0]


def test_multipliers_without_a_matched_row_repeat_a_neighbour():
    # Control is never logged, so nothing is matched above 3; between 2 and 1 nobody is either.
    value_hat = torch.tensor([[0.0, 3.0, 5.0], [0.0, 3.0, 4.0]])
    cost_hat = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    trial = {
        "treatment": torch.tensor([1, 2]),
        "value": torch.tensor([1.0, 7.0]),
        "cost": torch.tensor([0.5, 2.0]),
        "propensity": torch.tensor([0.3, 0.7]),
    }
    curve = cost_curve(value_hat, cost_hat, **trial)
    assert curve.multiplier.tolist() == [math.inf, 3.0, 2.0, 1.0]
    assert curve.value.tolist() == pytest.approx([1.0, 1.0, 1.0, 7.0])
    assert curve.spend.tolist() == pytest.approx([0.5, 0.5, 0.5, 2.0])


def test_rounding_left_over_from_rows_that_left_is_not_a_row():
    """Fifty rows enter below 3 and leave below 2, one enters below 1: between 2 and 1 the sums are rounding alone."""
    value_hat = torch.tensor([[0.0, 3.0, 5.0]] * 50 + [[0.0, 3.0, 4.0]])
    cost_hat = torch.tensor([[0.0, 1.0, 2.0]]).expand(51, 3)
    trial = random_trial(rng(0), 51, 3) | {"treatment": torch.tensor([1] * 50 + [2])}
    weight = 1 / trial["propensity"][:50]
    assert float(torch.cat([weight, -weight]).cumsum(0)[-1]) != 0
    curve = cost_curve(value_hat, cost_hat, **trial)
    expected = float((weight * trial["value"][:50]).sum() / weight.sum())
    assert curve.at_multiplier([2.5, 1.5]).value.tolist() == pytest.approx([expected, expected])


def test_eom_at_multiplier_equals_the_direct_sum():
    value_hat, cost_hat = predictions(rng(7), 300, 4, integers=True)
    trial = random_trial(rng(8), 300, 4)
    for eom, normalization in ((eom_hajek, "hajek"), (eom_ipw, "ipw")):
        multipliers = [0.0, 0.5, 1.0, 1.4, 2.0, 5.0, math.inf]
        point = eom(value_hat, cost_hat, **trial, multiplier=multipliers)
        for i, multiplier in enumerate(multipliers):
            expected = estimate(value_hat, cost_hat, trial, multiplier, normalization)
            assert (float(point.spend[i]), float(point.value[i])) == pytest.approx(expected, abs=1e-12)


def test_hajek_moves_with_the_values_and_ipw_does_not():
    value_hat, cost_hat = predictions(rng(7), 300, 4, integers=False)
    trial = random_trial(rng(8), 300, 4)
    moved = {**trial, "value": trial["value"] + 1000}
    budgets = [0.2, 0.4]

    def change(eom):
        after, before = (eom(value_hat, cost_hat, **x, budgets=budgets).value for x in (moved, trial))
        return after - before

    torch.testing.assert_close(change(eom_hajek), torch.full((2,), 1000.0, dtype=torch.float64))
    assert (change(eom_ipw) - 1000).abs().min() > 1


GOOD = {"value_hat": torch.zeros(2, 2), "cost_hat": torch.ones(2, 2), **{k: v.expand(2) for k, v in one_row(1).items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value_hat": torch.zeros(2, 3)}, "one shape"),
        ({"value_hat": torch.tensor([[0.0, math.nan], [0.0, 1.0]])}, "1 entries of predicted value are not finite"),
        ({"treatment": torch.tensor([0, 2])}, "allowed: 0 to 1"),
        ({"treatment": torch.tensor([0.0, 1.0])}, "integers"),
        ({"propensity": torch.tensor([0.0, 0.5])}, "above 0, at most 1"),
        ({"propensity": torch.tensor([0.5, 1.5])}, "above 0, at most 1"),
        ({"cost": torch.tensor([math.inf, 0.5])}, "cost has entries that are not finite"),
        ({"value": torch.zeros(3)}, "value has shape"),
        ({"normalization": "none"}, "hajek or ipw"),
        ({k: x[:0] for k, x in GOOD.items()}, "at least 1 user"),
    ],
)
def test_bad_input_is_told_in_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        cost_curve(**{**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_bad_budgets_and_multipliers():
    curve = cost_curve(**GOOD)
    for budgets in (0.0, -1.0, [1.0, math.nan], []):
        with pytest.raises(InputError, match="above 0"):
            curve.at_budget(budgets)
    for multiplier in (-0.1, math.nan):
        with pytest.raises(InputError, match="0 or more"):
            curve.at_multiplier(multiplier)
    with pytest.raises(InputError, match="neither"):
        eom_hajek(**GOOD)
    with pytest.raises(InputError, match="both"):
        eom_hajek(**GOOD, budgets=1.0, multiplier=1.0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.integers(2, 11),
    st.booleans(),
    st.sampled_from(["hajek", "ipw"]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_compiled_equals_torch(seed, users, arms, integers, normalization, weighted, dtype):
    generator = rng(seed)
    value_hat, cost_hat = (x.to(dtype) for x in predictions(generator, users, arms, integers))
    if seed % 2:
        value_hat = value_hat.T.contiguous().T
    trial = random_trial(generator, users, arms)
    weight = torch.rand(users, generator=generator).mul(3).floor() if weighted else None
    if weight is not None:
        weight[0] = 2.0
    fast = cost_curve(value_hat, cost_hat, **trial, normalization=normalization, weight=weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0")
        slow = cost_curve(value_hat, cost_hat, **trial, normalization=normalization, weight=weight)
    assert torch.equal(fast.multiplier, slow.multiplier)
    torch.testing.assert_close(fast.spend, slow.spend, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(fast.value, slow.value, rtol=1e-11, atol=1e-11)
