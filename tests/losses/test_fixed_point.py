"""A trial whose truth is known, drawn again and again: where the goal leaves predictions, and where it moves them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_trials import random_batch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.gains import Weighting

USERS, ARMS, DRAWS = 40, 4, 4_000


def truth() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    value = 2 + torch.randn(USERS, ARMS, generator=g, dtype=torch.float64)
    cost = torch.arange(ARMS) * (0.3 + 0.4 * torch.rand(USERS, 1, generator=g, dtype=torch.float64))
    return value, cost


def mean_gradient_z(weighting: Weighting, entropy: float, exaggeration: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean gradient over many randomizations and outcomes, and its z, at ``exaggeration`` times the true effects."""
    value, cost = truth()
    g = torch.Generator().manual_seed(7)
    p = 0.1 + torch.rand(USERS, ARMS, generator=g, dtype=torch.float64)
    p /= p.sum(1, keepdim=True)
    treatment = torch.multinomial(p, DRAWS, replacement=True, generator=g).T  # [draws, users]
    user = torch.arange(USERS).expand(DRAWS, -1)
    noise = torch.randn(2, DRAWS, USERS, generator=g, dtype=torch.float64)
    batch = replace(
        random_batch(1, ARMS),
        treatment=treatment.flatten(),
        value=(value[user, treatment] + noise[0]).flatten(),
        cost=(cost[user, treatment] + 0.5 * noise[1]).flatten(),
        propensity=p[user, treatment].flatten(),
    )
    centre = value.mean(1, keepdim=True)
    model = (centre + exaggeration * (value - centre)).repeat(DRAWS, 1).requires_grad_()
    prediction = ResponsePrediction(model, cost.repeat(DRAWS, 1))
    term = BudgetRegularizer(Softmax(0.7), GoalForm(weighting=weighting, entropy=entropy))
    multipliers = torch.tensor([0.2, 1.0], dtype=torch.float64)
    state = term.measure(ResponsePrediction(model.detach(), prediction.cost), batch, multipliers)
    term(batch, prediction, state).backward()
    assert model.grad is not None
    # The goal is a mean over draws × users rows: undo it to get one draw's gradient.
    each = model.grad.view(DRAWS, USERS, ARMS) * DRAWS * USERS
    mean = each.mean(0)
    return mean, mean / each.std(0) * DRAWS**0.5


def test_correct_predictions_are_a_fixed_point() -> None:
    _, z = mean_gradient_z("doubly_robust", entropy=1.0)
    # Four gradients of a user sum to 0: three are free, 120 in all.
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) == pytest.approx(1, abs=0.45)


def test_without_entropy_correct_predictions_are_pushed_to_exaggerate() -> None:
    mean, z = mean_gradient_z("doubly_robust", entropy=0.0)
    assert float((z.abs() > 5).double().mean()) > 0.8
    # Upwards for a user's best arm, and on the whole towards larger differences.
    assert float(mean.max(1).values.min()) > 0


@pytest.mark.parametrize(("exaggeration", "sign"), [(0.4, 1), (2.5, -1)])
def test_with_entropy_wrong_differences_are_corrected_towards_the_truth(exaggeration: float, sign: int) -> None:
    mean, _ = mean_gradient_z("doubly_robust", entropy=1.0, exaggeration=exaggeration)
    value, _ = truth()
    assert sign * float((mean * (value - value.mean(1, keepdim=True))).sum()) > 0


def test_ipw_and_doubly_robust_agree_on_average_and_the_latter_varies_less() -> None:
    (ipw, z_ipw), (robust, z_robust) = (mean_gradient_z(w, entropy=0.0) for w in ("ipw", "doubly_robust"))
    sd_ipw, sd_robust = (ipw / z_ipw).abs(), (robust / z_robust).abs()
    z = (ipw - robust) / (sd_ipw**2 + sd_robust**2).sqrt()
    assert float(z.abs().max()) < 4.5
    assert float(sd_robust.mean()) < 0.8 * float(sd_ipw.mean())
