"""Measure the goal's multipliers and constants, on the whole training split or on a batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_budget.allocation import policy_treatment, solve_multipliers
from lightning_budget.allocation.dual import treatment_cost
from lightning_budget.allocation.problem import check_predictions
from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.losses.gains import Outcomes
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.metrics.functional.checks import check_outcomes

SAMPLE = 1 << 16
"""Users whose treatments are kept between refreshes, to see how many change."""


def measure_goal(
    regularizer: BudgetRegularizer,
    prediction: ResponsePrediction,
    outcomes: Outcomes,
    budgets: Tensor | None,
    multipliers: Sequence[float] | None,
    **how: Any,
) -> GoalState:
    """Solve the multipliers of the budgets, unless they are given, and measure what the goal needs at them.

    Args:
        prediction: ``[N, K]``; outcomes: the N rows.
        budgets: ``[B]``, currency per user; or multipliers: B of them.
        how: as :meth:`BudgetRegularizer.measure` takes.

    Raises:
        InputError: for predictions or outcomes that are not finite, propensities outside (0, 1], or a budget below the
            cheapest feasible spend.
    """
    check_outcomes(outcomes.value, outcomes.cost, outcomes.propensity, len(prediction.value))
    if multipliers is None:
        assert budgets is not None
        found = weighted_multipliers(prediction, budgets, outcomes.weight)
    else:
        check_predictions(prediction.value, prediction.cost)
        budgets, found = None, torch.tensor(multipliers, dtype=torch.float64)
    return regularizer.measure(prediction, outcomes, found, budgets, **how)


def weighted_multipliers(prediction: ResponsePrediction, budgets: Tensor, weight: Tensor | None) -> Tensor:
    """Multipliers ``[B]`` at which the mean spend is that of the budgets; a user of weight 2 counts as two.

    Args:
        prediction: ``[N, K]``; budgets: ``[B]``, currency per user; weight: ``[N]`` sample weights, if there are some.
    """
    if weight is None:
        return solve_multipliers(prediction.value, prediction.cost, budgets)
    # Scores in another unit make the same choices, and spend in it is the weighted one.
    share = (weight.double() / weight.double().mean())[:, None]
    return solve_multipliers(prediction.value.double() * share, prediction.cost.double() * share, budgets)


@contextmanager
def told_where(step: int) -> Iterator[None]:
    """An error in what the goal is measured on says at which step."""
    try:
        yield
    except InputError as error:
        _, (found, allowed, fix) = error.__reduce__()
        raise InputError(f"the goal cannot be measured at step {step}: {found}", allowed, fix) from error


def treatments_at(prediction: ResponsePrediction, multipliers: Tensor) -> Tensor:
    """Treatment of every user at each multiplier, ``[B, n]`` uint8, in host memory."""
    chosen = [policy_treatment(prediction.value, prediction.cost, float(m)) for m in multipliers]
    return torch.stack(chosen).to(torch.uint8).cpu()


def share_of_changes(before: Tensor | None, now: Tensor) -> Tensor | None:
    """Share of users whose treatment is another one, ``[B, n] → [B]``; ``None`` where there was none before."""
    return None if before is None else (before != now).float().mean(dim=1)


def sample_of(prediction: ResponsePrediction) -> ResponsePrediction:
    """Every so-many-th user, the same ones at every refresh, at most :data:`SAMPLE`."""
    step = -(-len(prediction.value) // SAMPLE)
    return ResponsePrediction(prediction.value[::step], prediction.cost[::step])


def idle_budgets(state: GoalState, prediction: ResponsePrediction) -> str | None:
    """What to tell of budgets above what the model would spend if money cost nothing; ``None``: all of them bind."""
    idle = state.budget[state.multiplier == 0].tolist()
    if not idle:
        return None
    free = policy_treatment(prediction.value, prediction.cost, 0.0)
    spend = float(treatment_cost(prediction.cost, free).double().mean())
    return (
        f"budgets of {', '.join(f'{b:g}' for b in idle)} per user are above the {spend:g} that the model would spend "
        "if money cost nothing: their multiplier is 0 and they bind nothing"
    )
