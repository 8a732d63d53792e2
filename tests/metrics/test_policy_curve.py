from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from metrics_reference import policy, predictions, rng, segments
from scipy.optimize import linprog

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import CostCurve, normalized_area, policy_curve, regret


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_policy_curve_equals_the_loop_over_multipliers(integers, seed):
    generator = rng(seed)
    value_hat, cost_hat = predictions(generator, 12, 2 + seed % 4, integers)
    if integers:  # exact duplicates of an arm leave open which of them is served
        value_hat += torch.arange(value_hat.shape[1]) / 1024
    true_value, true_cost = predictions(generator, *value_hat.shape, integers=False)
    multipliers = segments(value_hat, cost_hat)
    point = policy_curve(value_hat, cost_hat, true_value, true_cost).at_multiplier([float(m) for m in multipliers])
    for i, multiplier in enumerate(multipliers):
        chosen = torch.from_numpy(policy(value_hat, cost_hat, multiplier))[:, None]
        assert float(point.value[i]) == pytest.approx(float(true_value.gather(1, chosen).mean()), abs=1e-12)
        assert float(point.spend[i]) == pytest.approx(float(true_cost.gather(1, chosen).mean()), abs=1e-12)


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_curve_of_the_truth_is_the_optimum_of_the_linear_relaxation(integers, seed):
    """max Σ v z, Σ c z ≤ N b, Σ_j z_ij = 1, 0 ≤ z: HiGHS at random budgets."""
    value, cost = predictions(rng(seed), 25, 4, integers)
    curve = policy_curve(value, cost, value, cost)
    assert (curve.spend.diff() >= -1e-12).all()
    start, free = float(curve.spend[0]), float(curve.spend[-1])
    budgets = start + (torch.rand(8, generator=rng(seed), dtype=torch.float64) * 1.3 + 0.01) * (free - start)
    point = curve.at_budget(budgets)
    one_arm = np.kron(np.eye(25), np.ones(4))
    for i, budget in enumerate(budgets.tolist()):
        lp = linprog(
            -value.numpy().ravel(),
            A_ub=cost.numpy().reshape(1, -1),
            b_ub=[25 * budget],
            A_eq=one_arm,
            b_eq=np.ones(25),
            method="highs",
        )
        assert float(point.value[i]) == pytest.approx(-lp.fun / 25, abs=1e-9)
        assert float(point.spend[i]) <= budget
        if budget < free:
            assert float(point.spend[i]) == budget


def test_wrong_predictions_may_dip_and_the_first_crossing_counts():
    # The second increment taken saves money in truth; budget 1 is first exceeded on the first increment.
    value_hat = torch.tensor([[0.0, 9.0], [0.0, 5.0], [0.0, 1.0]])
    cost_hat = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    true_value = torch.tensor([[0.0, 6.0], [0.0, 3.0], [0.0, 30.0]])
    true_cost = torch.tensor([[0.0, 6.0], [4.0, 0.0], [0.0, 9.0]])
    curve = policy_curve(value_hat, cost_hat, true_value, true_cost)
    assert curve.spend.tolist() == pytest.approx([4 / 3, 10 / 3, 2.0, 5.0])
    assert curve.at_budget([2.0]).value.tolist() == pytest.approx([2 / 3])


def test_regret_is_never_negative_and_zero_for_the_truth():
    generator = rng(11)
    true_value, true_cost = predictions(generator, 300, 5, integers=False)
    true_cost[:, 0] = 0
    cost_hat = true_cost * torch.rand(300, 5, generator=generator, dtype=torch.float64)
    value_hat = true_value + torch.randn(300, 5, generator=generator, dtype=torch.float64)
    oracle = policy_curve(true_value, true_cost, true_value, true_cost)
    budgets = torch.linspace(0.05, 3, 40, dtype=torch.float64)
    left = regret(policy_curve(value_hat, cost_hat, true_value, true_cost), oracle, budgets)
    assert (left > 0).all()
    assert regret(oracle, oracle, budgets).abs().max() == 0


def curve(spend, value):
    multiplier = torch.tensor([math.inf, *range(len(spend) - 1, 0, -1)], dtype=torch.float64)
    as_tensor = [torch.tensor(x, dtype=torch.float64) for x in (spend, value)]
    return CostCurve(multiplier, *as_tensor)


def test_area_in_closed_form():
    assert normalized_area(curve([0.0, 4.0], [1.0, 3.0])) == pytest.approx(0.5)
    assert normalized_area(curve([0.0, 1.0, 4.0], [0.0, 2.0, 2.0])) == pytest.approx((1 + 6) / 8)
    # Judged on a longer road, the money left over keeps the last value.
    assert normalized_area(curve([0.0, 4.0], [0.0, 2.0]), free_spend=8, free_value=4) == pytest.approx((4 + 8) / 32)
    # A start that already costs 1 gains nothing before.
    assert normalized_area(curve([1.0, 3.0], [0.0, 1.0])) == pytest.approx(1 / 3)
    for bad in (curve([0.0, 0.0], [0.0, 1.0]), curve([0.0, 1.0], [1.0, 1.0])):
        with pytest.raises(InputError, match="references of another curve"):
            normalized_area(bad)


@pytest.mark.parametrize("seed", range(5))
def test_area_equals_a_fine_grid_of_budgets_even_where_the_spend_dips(seed):
    generator = rng(seed)
    spend = torch.rand(12, generator=generator, dtype=torch.float64) + torch.linspace(0, 1, 12, dtype=torch.float64)
    wild = curve(spend.tolist(), torch.randn(12, generator=generator, dtype=torch.float64).tolist())
    end = 0.3 + 0.4 * seed
    grid = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * end
    expected = float((wild.at_budget(grid).value.mean() - 0.5) / 2)
    area = normalized_area(wild, free_spend=end, base_value=0.5, free_value=2.5)
    assert float(area) == pytest.approx(expected, abs=1e-4)
