"""What the goal's multipliers are measured on, when, and that training notices nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from objective_runs import BUDGETS, EPOCH, Step, fit, objective
from torch import Tensor

from lightning_budget.allocation import solve_multipliers
from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.estimators import NES
from lightning_budget.losses.budget_regularizer import GoalForm
from lightning_budget.losses.budgets import BudgetPrior, budgets_per_user
from lightning_budget.losses.measure import score_spread
from lightning_budget.training.objective.refresh import SAMPLE, sample_of
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source
from lightning_budget.training.objective.targets import Targets

LAST = 3 * EPOCH
MODEL = {"name": "tarnet", "embedding_dim": 4, "dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4}
DROPOUT = {"model": {**MODEL, "dropout": 0.5}}


def solved(prediction: ResponsePrediction | None, budgets: Tensor) -> tuple[Tensor, Tensor]:
    """Multipliers and spread."""
    assert prediction is not None
    multipliers = solve_multipliers(prediction.value, prediction.cost, budgets)
    return multipliers, score_spread(prediction, multipliers)


def assert_in_force(step: Step, multipliers: Tensor, spread: Tensor, atol: float = 0.0) -> None:
    assert step.state is not None
    for name, expected in (("multiplier", multipliers), ("spread", spread)):
        torch.testing.assert_close(step.state[name].double(), expected.double(), rtol=1e-5, atol=atol, msg=name)


@pytest.mark.parametrize("every", [None, 1, 5, 11])
def test_the_whole_split_is_measured_exactly_when_it_is_due(tmp_path: Path, every: int | None) -> None:
    run = fit(tmp_path, objective(source=Source(every_n_steps=every)), predicts=True, module=DROPOUT)
    budgets = run.data.statistics.free_spend * torch.tensor(BUDGETS, dtype=torch.float64)
    due = range(EPOCH, LAST, every or EPOCH)
    for s, step in run.spy.steps.items():
        assert step.refreshes == sum(d <= s for d in due), s
        if s >= EPOCH:
            # What the model predicted before the last step at which it was due.
            assert_in_force(step, *solved(run.spy.steps[max(d for d in due if d <= s)].whole, budgets))
    assert sorted(run.notes.of("multiplier@0.1")) == list(due)


def test_another_budget_of_the_prior_at_every_refresh(tmp_path: Path) -> None:
    prior = BudgetPrior("loguniform", 0.05, 0.5, count=3)
    run = fit(tmp_path, objective(budgets=prior, source=Source(every_n_steps=5)), predicts=True)
    for i, s in enumerate(range(EPOCH, LAST, 5)):
        budgets = budgets_per_user(prior, i, run.data.statistics.free_spend)
        step = run.spy.steps[s]
        assert_in_force(step, *solved(step.whole, budgets))
        assert step.state is not None
        torch.testing.assert_close(step.state["budget"].double(), budgets)


@pytest.mark.parametrize("name", ["batch", "running"])
def test_batches_are_measured_by_themselves_or_averaged(tmp_path: Path, name: str) -> None:
    run = fit(tmp_path, objective(source=Source(name, momentum=0.75)))  # type: ignore[arg-type]
    budgets = run.data.statistics.free_spend * torch.tensor(BUDGETS, dtype=torch.float64)
    average: tuple[Tensor, Tensor] | None = None
    for s in range(LAST):
        step = run.spy.steps[s]
        assert step.refreshes == max(0, s - EPOCH + 1)
        if s < EPOCH:
            assert step.state is None
            continue
        now = solved(step.prediction, budgets)
        if average is None or name == "batch":
            average = now
        else:
            average = (0.75 * average[0] + 0.25 * now[0], 0.75 * average[1] + 0.25 * now[1])
        assert_in_force(step, *average)


def test_multipliers_that_are_given_are_taken(tmp_path: Path) -> None:
    for source in (Source(), Source("running")):
        run = fit(tmp_path, objective(multipliers=(0.5, 2.0), source=source))
        step = run.spy.steps[LAST - 1]
        assert step.state is not None
        assert step.state["multiplier"].tolist() == pytest.approx([0.5, 2.0])
        assert run.notes.of("multiplier@lambda0.5")[2 * EPOCH] == pytest.approx(0.5)


@pytest.mark.parametrize("source", [Source(every_n_steps=3), Source("batch")])
def test_what_the_goal_draws_training_does_not_miss(tmp_path: Path, source: Source) -> None:
    form = GoalForm(cost_term="mu", weighting="hajek")
    callback = objective(NES(pairs=2), form, schedule=Schedule(1e-12, warm_start_epochs=1), source=source)
    without, with_goal = (fit(tmp_path, c, module=DROPOUT) for c in (None, callback))
    assert callback._refreshes >= 5
    losses = [[r.spy.steps[s].loss for s in range(LAST)] for r in (without, with_goal)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    # Another draw of the units that are left out would show.
    other = fit(tmp_path, module={**DROPOUT, "seed": 1})
    assert abs(other.spy.steps[5].loss - without.spy.steps[5].loss) > 1e-4


@pytest.mark.parametrize("source", [Source(every_n_steps=3), Source("batch")])
def test_what_is_logged_changes_no_draw(tmp_path: Path, source: Source) -> None:
    losses = []
    for every in (1, 100):
        callback = objective(NES(pairs=2), GoalForm(cost_term="mu", weighting="hajek"), source=source)
        run = fit(tmp_path, callback, log_every_n_steps=every)
        losses.append([run.spy.steps[s].loss for s in range(LAST)])
    assert losses[0] == losses[1]


def test_the_sample_is_bounded_and_spread_over_the_split() -> None:
    rows = 3 * SAMPLE + 1
    column = torch.arange(rows, dtype=torch.float32)[:, None]
    found = sample_of(ResponsePrediction(column, column)).value[:, 0]
    assert SAMPLE / 2 < len(found) <= SAMPLE
    assert found[0] == 0
    assert found[-1] > rows - 5
    assert len(sample_of(ResponsePrediction(column[:7], column[:7])).value) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Source("all"), "objective.source='all'; allowed: full, running, batch"),
        (lambda: Source(every_n_steps=0), "objective.refresh_every_n_steps=0 with source=full; allowed: at least 1"),
        (lambda: Source("batch", 5), "objective.refresh_every_n_steps=5 with source=batch"),
        (lambda: Source("running", momentum=1.0), "objective.momentum=1.0; allowed: at least 0, below 1"),
        (lambda: Targets(multipliers=()), "objective.multipliers=[]; allowed: numbers of 0 or more"),
        (lambda: Targets(multipliers=(1.0, -2.0)), "objective.multipliers=[1.0, -2.0]"),
        (lambda: Targets(multipliers=(float("inf"),)), "objective.multipliers=[inf]"),
    ],
)
def test_refuses(make: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()  # type: ignore[operator]
    assert message in str(caught.value)
