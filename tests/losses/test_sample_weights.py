"""A row of sample weight w counts as w rows: in the prediction loss, the goal, its constants and its multipliers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.estimators import IFD, GradientEstimator, Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.gains import Weighting
from lightning_budget.losses.response import response_losses
from lightning_budget.training.objective.refresh import measure_goal

ROWS, ARMS = 400, 3
BUDGETS = torch.tensor([0.2, 0.6], dtype=torch.float64)


def trial(seed: int = 0) -> tuple[RCTBatch, Tensor, Tensor]:
    """Rows without weights, predictions ``[2, N, K]`` and whole weights, some of them 0."""
    g = torch.Generator().manual_seed(seed)
    treatment = torch.randint(ARMS, (ROWS,), generator=g)
    value, cost = (torch.rand(ROWS, generator=g) * (1 + treatment) for _ in range(2))
    propensity = 0.2 + 0.6 * torch.rand(ROWS, generator=g)
    dense = torch.zeros(ROWS, 0)
    batch = RCTBatch(dense, None, treatment, value, cost * (treatment > 0), propensity, torch.arange(ROWS))
    predicted = torch.rand(2, ROWS, ARMS, generator=g).cumsum(2)
    predicted[1, :, 0] = 0
    return batch, predicted, torch.randint(4, (ROWS,), generator=g)


def repeated(batch: RCTBatch, times: Tensor) -> RCTBatch:
    """Each row as often as told."""
    names = ("dense", "treatment", "value", "cost", "propensity", "row")
    return replace(batch, **{n: getattr(batch, n).repeat_interleave(times, dim=0) for n in names})


def goal_of(
    batch: RCTBatch, predicted: Tensor, regularizer: BudgetRegularizer, unit: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Multipliers, the goal and its gradient by predictions ``[2, N, K]``."""
    x = predicted.clone().requires_grad_()
    prediction = ResponsePrediction(*x)
    state = measure_goal(regularizer, prediction.detach(), batch, BUDGETS, None)
    goal = regularizer(batch, prediction, state, weight_mean=unit)
    goal.backward()
    assert x.grad is not None
    return state.multiplier, goal.detach(), x.grad


@pytest.mark.parametrize("weighting", ["ipw", "hajek", "poststratified", "doubly_robust"])
@pytest.mark.parametrize(
    ("estimator", "form"),
    [
        (Softmax(), GoalForm()),
        (Softmax(), GoalForm(baseline="centred", cost_term="mu", width_unit="value")),
        (IFD(), GoalForm(form="primal", entropy=0.0, width_unit="value")),
    ],
)
def test_the_goal_counts_a_row_as_often_as_its_weight(
    weighting: Weighting, estimator: GradientEstimator, form: GoalForm
) -> None:
    batch, predicted, times = trial()
    # The unit of the width alone is of users, not of rows.
    form = replace(form, weighting=weighting, width_unit="value")
    regularizer = BudgetRegularizer(estimator, form)
    weighted = replace(batch, weight=2.0 * times)
    unit = float(weighted.weight.mean()) if weighted.weight is not None else 1.0
    multiplier, goal, gradient = goal_of(weighted, predicted, regularizer, unit)
    expected = goal_of(repeated(batch, times), predicted.repeat_interleave(times, dim=1), regularizer, 1.0)
    torch.testing.assert_close(multiplier, expected[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(goal, expected[1], rtol=1e-4, atol=1e-6)
    summed = torch.zeros_like(gradient).index_add_(1, torch.arange(ROWS).repeat_interleave(times), expected[2])
    torch.testing.assert_close(gradient, summed, rtol=1e-3, atol=2e-6)


def test_the_prediction_loss_counts_a_row_as_often_as_its_weight() -> None:
    batch, predicted, times = trial(1)
    share = torch.tensor([0.5, 0.3, 0.2])
    about = (share, "continuous", "continuous", 2.0, 3.0)
    weighted = replace(batch, weight=5.0 * times)
    found = response_losses(weighted, ResponsePrediction(*predicted), *about, 5.0 * float(times.float().mean())).mean()
    many = ResponsePrediction(*predicted.repeat_interleave(times, dim=1))
    expected = response_losses(repeated(batch, times), many, *about).mean()
    torch.testing.assert_close(found, expected)
