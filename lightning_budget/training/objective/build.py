"""From the ``estimator`` and ``objective`` groups of a config to the callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.estimators import ESTIMATORS, build_estimator, estimator_arguments
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.budgets import budget_grid, parse_budgets
from lightning_budget.training.callbacks.budget_objective import BudgetObjective
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source
from lightning_budget.training.objective.targets import Targets


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
    _check_numbers(estimator)
    regularizer = BudgetRegularizer(build_estimator(estimator), GoalForm(**_of(GoalForm, objective)))
    given, multipliers = objective.get("budgets"), objective.get("multipliers")
    if given is not None and multipliers is not None:
        raise InputError("objective.budgets and objective.multipliers", "one of the two", "set one of them to null")
    if given is None:
        budget_grid(budgets, 1.0)  # an error names the report's key
    targets = Targets(
        parse_budgets(budgets if given is None else given, objective.get("budget_unit", "fraction")),
        None if multipliers is None else tuple(multipliers),
    )
    if given is None and targets.budgets.unit != "fraction":
        raise InputError(
            f"objective.budget_unit={targets.budgets.unit} of the report's budgets",
            "fraction, which they are",
            "give objective.budgets=[…] in that unit",
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


def _check_numbers(estimator: Mapping[str, Any]) -> None:
    """The config's schema cannot: which arguments there are depends on the estimator."""
    defaults = estimator_arguments(estimator["name"]) if estimator.get("name") in ESTIMATORS else {}
    for key, default in defaults.items():
        given = estimator.get(key)
        if _is_number(default) and given is not None and not _is_number(given):
            raise InputError(f"estimator.{key}={given!r}", "a number", f"{default} is the default")


def _is_number(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
