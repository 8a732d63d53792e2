"""What the goal holds fixed between refreshes: stored, moved and averaged."""

from __future__ import annotations

import torch

from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.goal_state import GoalState
from tests.losses.goal_reference import informative_trial


def state(multiplier: float, budgets: bool = True) -> GoalState:
    rows, prediction, _ = informative_trial(100)
    term = BudgetRegularizer(Softmax(), GoalForm("dual", "mu", "hajek"))
    found = torch.tensor([multiplier, 2 * multiplier], dtype=torch.float64)
    return term.measure(prediction, rows, found, 1 / found if budgets else None)


def test_through_a_checkpoint_bit_for_bit() -> None:
    first = state(0.7)
    again = GoalState.from_tensors({name: x.clone() for name, x in first.tensors().items()})
    assert list(first.tensors()) == list(GoalState.__annotations__)
    for name, x in first.tensors().items():
        assert torch.equal(getattr(again, name), x)


def test_moved_to_another_type() -> None:
    assert {x.dtype for x in state(0.7).to(torch.device("cpu"), torch.float32).tensors().values()} == {torch.float32}


def test_running_average() -> None:
    old, new = state(0.5), state(1.0)
    mean = old.blend(new, 0.75)
    for name, x in mean.tensors().items():
        torch.testing.assert_close(x, 0.75 * getattr(old, name) + 0.25 * getattr(new, name), rtol=1e-12, atol=0)
    assert mean.multiplier.tolist() == [0.625, 1.25]
    assert torch.equal(old.blend(new, 0.0).rate, new.rate)
    assert state(0.5, budgets=False).blend(state(1.0, budgets=False), 0.5).budget.isnan().all()


def test_constants_are_those_of_the_weighting() -> None:
    found = state(0.5)
    assert found.constants.value_base is found.value_base
    assert found.constants.cost_base is found.cost_base
    assert found.constants.factor is found.factor
