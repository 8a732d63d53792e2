"""Batches that leave something undefined: finite goals and gradients for every estimator and weighting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.estimators import ESTIMATORS, Softmax, build_estimator
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from tests.losses.goal_reference import SWITCHES, trial

Case = tuple[RCTBatch, ResponsePrediction]
MULTIPLIERS = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
HUGE = torch.tensor([1e6, 1e18], dtype=torch.float64)


def rows(n: int, treatments: int = 3) -> Case:
    """Float32, as in training."""
    batch, prediction, _ = trial(n, treatments)
    kind = {name: getattr(batch, name).float() for name in ("value", "cost", "propensity")}
    return replace(batch, **kind), ResponsePrediction(prediction.value.float(), prediction.cost.float())


def one_arm_absent() -> Case:
    batch, prediction = rows(20, 4)
    return replace(batch, treatment=batch.treatment % 3), prediction


def one_arm_alone() -> Case:
    batch, prediction = rows(20)
    return replace(batch, treatment=torch.full_like(batch.treatment, 2)), prediction


def costs_zero() -> Case:
    batch, prediction = rows(20)
    nothing = torch.zeros_like(prediction.cost)
    return replace(batch, cost=torch.zeros_like(batch.cost)), ResponsePrediction(prediction.value, nothing)


def scores_tied() -> Case:
    batch, prediction = rows(20)
    return batch, ResponsePrediction(torch.full_like(prediction.value, 7), torch.ones_like(prediction.cost))


def scores_zero() -> Case:
    batch, prediction = rows(20)
    nothing = torch.zeros_like(prediction.cost)
    return replace(batch, value=100 * batch.value), ResponsePrediction(nothing, nothing)


def outcomes_zero() -> Case:
    batch, prediction = rows(20)
    nothing = torch.zeros_like(batch.cost)
    return replace(batch, value=nothing, cost=nothing), prediction


def dear_arms() -> Case:
    batch, prediction = rows(20)
    return replace(batch, cost=300 * batch.cost), ResponsePrediction(prediction.value, 300 * prediction.cost)


CASES: dict[str, tuple[Callable[[], Case], Tensor]] = {
    "one arm absent": (one_arm_absent, MULTIPLIERS),
    "one arm alone": (one_arm_alone, MULTIPLIERS),
    "all costs zero": (costs_zero, MULTIPLIERS),
    "all scores tied": (scores_tied, MULTIPLIERS),
    "all scores zero": (scores_zero, MULTIPLIERS),
    "nothing observed": (outcomes_zero, MULTIPLIERS),
    "two arms": (lambda: rows(20, 2), MULTIPLIERS),
    "one user": (lambda: rows(1), MULTIPLIERS),
    "multiplier zero": (lambda: rows(20), torch.zeros(1)),
    "multiplier huge": (lambda: rows(20), HUGE),
    "multiplier huge, costs zero": (costs_zero, HUGE),
    "multiplier huge, scores tied": (scores_tied, HUGE),
    "multiplier huge, dear arms": (dear_arms, HUGE),
}


def goal_and_gradient(
    name: str, form: GoalForm, case: Case, multipliers: Tensor, kind: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    batch, prediction = case
    leaves = [x.detach().to(kind).requires_grad_() for x in (prediction.value, prediction.cost)]
    own = ResponsePrediction(*leaves)
    g = torch.Generator().manual_seed(0)
    term = BudgetRegularizer(build_estimator({"name": name}), form)
    budgets = torch.full_like(multipliers, 0.1)
    state = term.measure(own, batch, multipliers, budgets, generator=g)
    goal = term(batch, own, state, generator=g)
    goal.backward()
    assert all(x.grad is not None and x.grad.dtype == kind for x in leaves)
    return goal.detach(), leaves[0].grad, leaves[1].grad  # type: ignore[return-value]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ESTIMATORS)
def test_goal_and_gradients_are_finite(name: str, case: str) -> None:
    make, multipliers = CASES[case]
    for weighting, baseline in SWITCHES:
        for entropy, unit in ((0.0, "value"), (1.0, "spread")):
            form = GoalForm("primal", "mu", weighting, baseline, entropy, unit)  # type: ignore[arg-type]
            found = goal_and_gradient(name, form, make(), multipliers)
            assert all(bool(x.isfinite().all()) for x in found), (form, found)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_short_predictions_have_finite_gradients_of_their_own_type(name: str, kind: torch.dtype) -> None:
    for weighting, baseline in SWITCHES:
        form = GoalForm("primal", "mu", weighting, baseline)  # type: ignore[arg-type]
        for multipliers in (MULTIPLIERS, HUGE):
            goal, *gradients = goal_and_gradient(name, form, rows(20), multipliers, kind)
            assert goal.dtype == torch.float32
            assert all(bool(x.isfinite().all()) for x in (goal, *gradients))
            assert any(float(x.abs().max()) > 0 for x in gradients)


@pytest.mark.parametrize("weighting", ["ipw", "hajek", "poststratified", "doubly_robust"])
def test_autocast_changes_nothing_but_the_predictions(weighting: str) -> None:
    """A head under autocast gives bfloat16; what the goal does with it is the same with and without."""
    batch, _ = rows(200, 4)
    torch.manual_seed(0)
    head = torch.nn.Linear(3, 8)
    dense = torch.randn(200, 3)
    term = BudgetRegularizer(Softmax(), GoalForm("dual", "mu", weighting, "centred"))  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16):
        value, cost = head(dense).chunk(2, dim=1)
        assert value.dtype == torch.bfloat16
        prediction = ResponsePrediction(value, cost)
        inside_state = term.measure(prediction, batch, MULTIPLIERS)
        inside = term(batch, prediction, inside_state)
    outside_state = term.measure(prediction, batch, MULTIPLIERS)
    outside = term(batch, prediction, outside_state)
    for name, x in inside_state.tensors().items():
        torch.testing.assert_close(x, outside_state.tensors()[name], rtol=0, atol=0, equal_nan=True)
    both = [torch.autograd.grad(x, [value, cost], retain_graph=True) for x in (inside, outside)]
    assert inside.item() == outside.item()
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))
    inside.backward()
    assert head.weight.grad is not None
    assert bool(head.weight.grad.isfinite().all())
    assert float(head.weight.grad.abs().max()) > 0


def test_an_absent_arm_of_a_batch_keeps_what_the_whole_data_says() -> None:
    """Constants come from the state: arm 3 has no row here, and its gain is still its mean on the data."""
    batch, prediction, _ = trial(200, 4)
    term = BudgetRegularizer(Softmax(), GoalForm(weighting="poststratified", cost_term="none", entropy=0))
    state = term.measure(prediction, batch, MULTIPLIERS)
    users = (batch.treatment != 3).nonzero()[:, 0]
    names = ("treatment", "value", "cost", "propensity", "row", "dense")
    part = replace(batch, sparse=None, **{name: getattr(batch, name)[users] for name in names})
    own = ResponsePrediction(prediction.value[users].detach().requires_grad_(), prediction.cost[users].detach())
    term(part, own, state).backward()
    dearer = replace(state, value_base=state.value_base + torch.tensor([0.0, 0.0, 0.0, 50.0]))
    assert own.value.grad is not None
    before, own.value.grad = own.value.grad[:, 3].mean(), None
    term(part, own, dearer).backward()
    assert own.value.grad is not None
    assert float(own.value.grad[:, 3].mean()) > float(before) + 0.01
