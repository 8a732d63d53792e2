"""From the ``estimator`` and ``objective`` groups of a config to the callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from lightning_budget.estimators import build_estimator
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.budgets import parse_budgets
from lightning_budget.training.callbacks.budget_objective import BudgetObjective, Targets
from lightning_budget.training.objective.refresh import Source
from lightning_budget.training.objective.schedule import Schedule


def objective_builder(
    estimator: Mapping[str, Any], objective: Mapping[str, Any], budgets: Sequence[float]
) -> Callable[[], BudgetObjective]:
    """Check both groups at once; each call then gives a callback with a state of its own.

    Args:
        estimator: name and arguments, see :func:`~lightning_budget.estimators.build_estimator`.
        objective: the keys of ``configs/objective/default.yaml``.
        budgets: fractions of the free optimum's spend, where the objective names none.

    Raises:
        InputError: for what no part takes.
    """
    regularizer = BudgetRegularizer(build_estimator(estimator), GoalForm(**_of(GoalForm, objective)))
    given = objective.get("budgets")
    targets = Targets(
        parse_budgets(budgets if given is None else given, objective.get("budget_unit", "fraction")),
        None if objective.get("multipliers") is None else tuple(objective["multipliers"]),
    )
    schedule = Schedule(**_of(Schedule, objective))
    names = {"source": "name", "refresh_every_n_steps": "every_n_steps", "momentum": "momentum"}
    source = Source(**{names[key]: objective[key] for key in names if key in objective})
    rest = {key: objective[key] for key in ("outcome_model", "warm_start_ckpt") if key in objective}

    def build() -> BudgetObjective:
        return BudgetObjective(regularizer, targets, schedule, source, **rest)

    build()
    return build


def _of(kind: type, config: Mapping[str, Any]) -> dict[str, Any]:
    return {f.name: config[f.name] for f in fields(kind) if f.name in config}
