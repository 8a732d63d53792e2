"""One training step of the goal at eight budgets, beside PyEPO's SPO+ with a linear program for each of them.

SPO+ (Elmachtoub, Grigas 2022) learns values from true ones by the allocation that they lead to; what an arm costs is
part of the program, and given. Its predictions change from step to step here, as they do in training: a program that is
solved again for the same ones starts from their solution, and takes a third of the time.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from estimator_cost import SWITCHES
from estimator_trial import Trial
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.training.objective.refresh import measure_goal

USERS, TREATMENTS = 1_000, 5
MISSING = "PyEPO not installed: pip install pyepo ortools"


@dataclass(frozen=True)
class Rival:
    """Seconds of processor time of a step at all budgets, a number for each round.

    Attributes:
        ours: goal and gradient, multipliers and μ as the last refresh left them; ours_anew: with both of this batch.
        theirs: SPO+, forward and backward.
        overspend: of its linear programs, spend over budget − 1 at the most.
        versions: of the packages.
    """

    ours: list[float]
    ours_anew: list[float]
    theirs: list[float]
    overspend: float
    versions: str


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("pyepo", "ortools"))


def race(rounds: int) -> Rival:
    """Body of a process: steps of both in turns, on one thread."""
    torch.set_num_threads(1)
    # Costs are data of the programs and must not be negative, as those of a linear head may be.
    trial = Trial.draw(USERS, TREATMENTS)
    cost = trial.prediction.cost.clamp_min(0)
    goal, batch = BudgetRegularizer(Softmax(), GoalForm(**SWITCHES)), trial.batch
    state = measure_goal(goal, ResponsePrediction(trial.prediction.value, cost), batch, trial.budgets, None)
    assert trial.table.true_value is not None
    programs = Programs(cost, trial.table.true_value, (USERS * trial.budgets).tolist())

    def ours(value: Tensor) -> None:
        goal(batch, _leaves(value, cost), state).backward()

    def ours_anew(value: Tensor) -> None:
        leaves = _leaves(value, cost)
        now = measure_goal(goal, ResponsePrediction(value, cost), batch, trial.budgets, None)
        goal(batch, leaves, now).backward()

    generator = torch.Generator().manual_seed(0)

    def changed() -> Tensor:
        noise = torch.randn(trial.prediction.value.shape, generator=generator)
        return trial.prediction.value + 0.1 * trial.prediction.value.std() * noise

    seconds: dict[str, list[float]] = {"ours": [], "ours_anew": [], "theirs": []}
    for _ in range(rounds):
        # A step of ours is too short for the clock: the mean of some.
        for name, step, steps in (("ours", ours, 20), ("ours_anew", ours_anew, 5), ("theirs", programs.step, 1)):
            values = [changed() for _ in range(steps + 1)]
            seconds[name].append(_time(step, values))
    packages = f"pyepo {version('pyepo')}, ortools {version('ortools')}"
    return Rival(**seconds, overspend=programs.overspend(), versions=packages)


def _leaves(value: Tensor, cost: Tensor) -> ResponsePrediction:
    return ResponsePrediction(value.clone().requires_grad_(), cost.clone().requires_grad_())


def _time(step: Callable[[Tensor], None], values: Sequence[Tensor]) -> float:
    step(values[0])
    start = time.process_time()
    for value in values[1:]:
        step(value)
    return (time.process_time() - start) / (len(values) - 1)


class Programs:
    """SPO+ over the linear relaxation of the allocation, one for each budget.

    Args:
        cost, true_value: ``[N, K]``; budgets: in total.
    """

    def __init__(self, cost: Tensor, true_value: Tensor, budgets: Sequence[float]) -> None:
        from pyepo.func import SPOPlus

        self.cost, self.budgets = cost, budgets
        self.models = [allocation_program(cost, b) for b in budgets]
        self.losses = [SPOPlus(model, processes=1) for model in self.models]
        self.truth = true_value.flatten()[None]
        self.solutions: list[tuple[Tensor, Tensor]] = []
        for model in self.models:
            model.setObj(self.truth[0])
            solution, best = model.solve()
            self.solutions.append((torch.as_tensor(solution)[None], torch.tensor([[best]])))

    def step(self, value: Tensor) -> None:
        """Losses of all budgets and their gradient by the predicted values."""
        leaf = value.flatten()[None].clone().requires_grad_()
        losses = [f(leaf, self.truth, *s) for f, s in zip(self.losses, self.solutions, strict=True)]
        torch.stack(losses).mean().backward()

    def overspend(self) -> float:
        """Of the programs' solutions for the true values."""
        spent = [float((s[0].double() * self.cost.flatten()).sum()) for s, _ in self.solutions]
        return max(x / b - 1 for x, b in zip(spent, self.budgets, strict=True))


def allocation_program(cost: Tensor, budget: float) -> Any:
    """One arm for every user within a budget, relaxed: a PyEPO model solved by GLOP."""
    from ortools.linear_solver import pywraplp
    from pyepo import EPO
    from pyepo.model.ort.ortmodel import optOrtModel

    class Allocation(optOrtModel):
        def _getModel(self) -> tuple[Any, Any]:  # noqa: N802
            self.modelSense = EPO.MAXIMIZE
            model = pywraplp.Solver.CreateSolver(self.solver.upper())
            users, arms = cost.shape
            x = {i: model.NumVar(0, 1, "") for i in range(users * arms)}
            spend = model.Constraint(-model.infinity(), budget)
            for i, c in enumerate(cost.flatten().tolist()):
                spend.SetCoefficient(x[i], c)
            for user in range(users):
                one = model.Constraint(1, 1)
                for arm in range(arms):
                    one.SetCoefficient(x[user * arms + arm], 1)
            return model, x

    return Allocation("glop")
