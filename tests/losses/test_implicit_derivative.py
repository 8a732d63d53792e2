"""The primal gradient with μ is the derivative of the outcome at a fixed budget, with λ solved again each time.

Perturb all predictions along a direction, solve λ again so that the *factual* smoothed spend meets the budget, and
difference the *factual* smoothed value: nothing here knows of an implicit derivative.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, CostTerm, GoalForm
from lightning_budget.losses.goal_state import GoalState
from tests.losses.goal_reference import SWITCHES, Rows, estimated_outcome

WIDTH = 0.25
SHARES = (0.2, 0.5)
"""Budgets as shares of the way from the smoothed spend at a high multiplier to that at 0."""


class Problem(NamedTuple):
    rows: Rows
    prediction: ResponsePrediction
    model: ResponsePrediction


def problem(users: int, error: float = 0.3, noise: float = 0.5, seed: int = 0) -> Problem:
    """Five arms, dearer ones worth more at a diminishing rate that differs between users.

    Predictions are calibrated: the truth is what they say plus an error that nobody can predict.

    Args:
        error: sd of the truth about the prediction, and noise: of an outcome about the truth, relative to one unit of
            value and to the cost.
    """
    g = torch.Generator().manual_seed(seed)
    arms = 5
    dose = torch.arange(arms, dtype=torch.float64)
    taste, price, base = torch.rand(3, users, 1, generator=g, dtype=torch.float64)
    prediction = ResponsePrediction(1 + base + 2 * taste * dose.sqrt(), 0.3 * dose * (0.5 + price))
    off = error * torch.randn(2, users, arms, generator=g, dtype=torch.float64)
    value, cost = prediction.value + off[0], prediction.cost * (1 + off[1])
    p = 0.5 + torch.rand(users, arms, generator=g, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    given = torch.multinomial(p, 1, generator=g)
    shock = noise * torch.randn(2, users, generator=g, dtype=torch.float64)
    seen = value.gather(1, given)[:, 0] + shock[0]
    paid = cost.gather(1, given)[:, 0] * (1 + shock[1])
    return Problem(Rows(given[:, 0], seen, paid, p.gather(1, given)[:, 0]), prediction, prediction)


def outcome(problem: Problem, kind: str, lam: float, v: Tensor, c: Tensor, weighting: str, centred: bool) -> float:
    q = torch.softmax((v - lam * c) / WIDTH, dim=1)
    y, model = getattr(problem.rows, kind), getattr(problem.model, kind)
    return float(estimated_outcome(q, problem.rows, weighting, y, model, centred))


def solve(problem: Problem, budget: float, v: Tensor, c: Tensor, how: tuple[str, bool], near: float | None) -> float:
    ends = (0.0, 50.0) if near is None else (0.99 * near, 1.01 * near)
    return brentq(lambda lam: outcome(problem, "cost", lam, v, c, *how) - budget, *ends, xtol=1e-14, rtol=1e-14)  # type: ignore[return-value]


def measured(problem: Problem, how: tuple[str, bool]) -> tuple[Tensor, Tensor]:
    """Budgets and the multipliers that meet them on the trial's own costs."""
    v, c = problem.prediction.value, problem.prediction.cost
    most, least = (outcome(problem, "cost", lam, v, c, *how) for lam in (0.0, 10.0))
    budgets = [least + share * (most - least) for share in SHARES]
    found = [solve(problem, b, v, c, how, None) for b in budgets]
    return torch.tensor(budgets, dtype=torch.float64), torch.tensor(found, dtype=torch.float64)


def directional(problem: Problem, how: tuple[str, bool], directions: Tensor, step: float = 1e-4) -> Tensor:
    """Central differences of the mean value over budgets, λ solved again, along directions ``[M, 2, N, K]``."""
    budgets, multipliers = measured(problem, how)

    def value(move: Tensor) -> float:
        v, c = problem.prediction.value + move[0], problem.prediction.cost + move[1]
        at = [
            outcome(problem, "value", solve(problem, b, v, c, how, near), v, c, *how)
            for b, near in zip(budgets.tolist(), multipliers.tolist(), strict=True)
        ]
        return math.fsum(at) / len(at)

    return torch.tensor([(value(step * d) - value(-step * d)) / (2 * step) for d in directions], dtype=torch.float64)


def state_and_gradient(problem: Problem, how: tuple[str, bool], cost_term: CostTerm) -> tuple[GoalState, Tensor]:
    """``[2, N, K]`` by value and cost."""
    budgets, multipliers = measured(problem, how)
    baseline = "centred" if how[1] else "none"
    form = GoalForm("primal", cost_term, how[0], baseline, entropy=0, width_unit="value")  # type: ignore[arg-type]
    term = BudgetRegularizer(Softmax(WIDTH), form)
    state = term.measure(problem.prediction, problem.rows, multipliers, budgets, problem.model)
    both = ResponsePrediction(
        *(x.clone().requires_grad_() for x in (problem.prediction.value, problem.prediction.cost))
    )
    term(problem.rows, both, state, problem.model).backward()  # type: ignore[arg-type]
    return state, torch.stack([both.value.grad, both.cost.grad])  # type: ignore[list-item]


def random_directions(count: int, users: int) -> Tensor:
    g = torch.Generator().manual_seed(11)
    return torch.randn(count, 2, users, 5, generator=g, dtype=torch.float64)


@pytest.mark.parametrize(("weighting", "baseline"), SWITCHES)
def test_mu_gives_the_derivative_itself(weighting: str, baseline: str) -> None:
    small, how = problem(200), (weighting, baseline == "centred")
    directions = random_directions(20, 200)
    state, gradient = state_and_gradient(small, how, "mu")
    # Far from the other two, so that neither could pass for it.
    assert float((state.rate / state.multiplier - 1).abs().max()) > 0.1
    expected = directional(small, how, directions)
    torch.testing.assert_close(
        (directions * gradient).sum((1, 2, 3)), expected, rtol=0, atol=3e-6 * float(expected.norm())
    )


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("weighting", ["hajek", "ipw"])
def test_cosines_with_the_derivative_at_a_fixed_budget(weighting: str, seed: int) -> None:
    users, how = 2_000, (weighting, False)
    trial = problem(users, seed=seed)
    unit = {}
    for cost_term in ("mu", "lambda", "none"):
        _, gradient = state_and_gradient(trial, how, cost_term)
        unit[cost_term] = gradient / gradient.norm()
    directions = torch.cat([torch.stack(list(unit.values())), random_directions(40, users)])
    slopes = directional(trial, how, directions)
    along = (directions[3:] * unit["mu"]).sum((1, 2, 3))
    assert float(torch.nn.functional.cosine_similarity(along, slopes[3:], dim=0)) > 0.99
    # The slope along a unit vector over the gradient's length, which is the slope along the gradient itself.
    by_mu, by_lambda, by_none = slopes[:3] / (slopes[3:].norm() / along.norm())
    assert float(by_mu) > 0.99
    assert 0.9 <= float(by_lambda) < float(by_mu)
    assert 0.8 <= float(by_none) < float(by_lambda)
