"""What the objective tells is what happened."""

from __future__ import annotations

import csv
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from objective_runs import BUDGETS, EPOCH, Run, SaveAfter, Step, fit, objective
from torch import Tensor

from lightning_budget.allocation import policy_treatment
from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import NES
from lightning_budget.losses.budget_regularizer import GoalForm
from lightning_budget.losses.budgets import FixedBudgets
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.losses.response import response_losses
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source

LAST = 3 * EPOCH
AT = [f"@{b:g}" for b in BUDGETS]
COLUMNS = [f"{name}{at}" for name in ("multiplier", "rate", "spread", "changed") for at in AT]
GRADIENTS = ["gradient_goal", "gradient_prediction", "gradient_cosine"]
OF_STEPS = ["weight", "width", *GRADIENTS]


def share_changed(before: ResponsePrediction, now: ResponsePrediction, old: Tensor, new: Tensor) -> list[float]:
    """Of the users, at each multiplier."""
    return [
        float(
            (policy_treatment(before.value, before.cost, a) != policy_treatment(now.value, now.cost, b)).float().mean()
        )
        for a, b in zip(old, new, strict=True)
    ]


def multipliers(step: Step) -> Tensor:
    assert step.state is not None
    return step.state["multiplier"]


def whole(step: Step) -> ResponsePrediction:
    assert step.whole is not None
    return step.whole


def numbers(run: Run, step: int) -> list[float]:
    return [run.notes.of(name)[step] for name in COLUMNS]


def expected(step: Step, changed: list[float]) -> list[float]:
    assert step.state is not None
    return [*(float(x) for name in ("multiplier", "rate", "spread") for x in step.state[name]), *changed]


def test_at_every_refresh_of_the_whole_split(tmp_path: Path) -> None:
    run = fit(tmp_path, objective(form=GoalForm(cost_term="none"), source=Source(every_n_steps=3)), predicts=True)
    refreshes = list(range(EPOCH, LAST, 3))
    assert {name for name, _ in run.notes.numbers} == {*COLUMNS, *OF_STEPS}
    assert sorted(run.notes.of("multiplier@0.1")) == refreshes
    assert sorted(run.notes.of("changed@0.1")) == refreshes[1:]
    moved = 0.0
    for a, b in pairwise(refreshes):
        before, now = run.spy.steps[a], run.spy.steps[b]
        changed = share_changed(whole(before), whole(now), multipliers(before), multipliers(now))
        # A user on the verge may fall to either side of a multiplier that is read from a checkpoint's float32.
        assert numbers(run, b) == pytest.approx(expected(now, changed), abs=2 / 1024)
        moved = max(moved, *changed)
    assert moved > 0.02


def test_at_every_step_of_batches(tmp_path: Path) -> None:
    run = fit(tmp_path, objective(source=Source("batch"), form=GoalForm(cost_term="none")))
    assert sorted(run.notes.of("multiplier@0.1")) == list(range(EPOCH, LAST))
    assert sorted(run.notes.of("changed@0.1")) == list(range(EPOCH + 1, LAST))
    moved = 0.0
    for s in range(EPOCH + 1, LAST):
        before, now = run.spy.steps[s - 1], run.spy.steps[s]
        same = now.prediction
        changed = share_changed(same, same, multipliers(before), multipliers(now))
        assert numbers(run, s) == pytest.approx(expected(now, changed), abs=1 / 128)
        moved = max(moved, *changed)
    assert moved > 0.02


def direct(run: Run, callback: BudgetObjective, step: Step, weight: float, factor: float) -> list[float]:
    """Norms and cosine, from one backward of each loss through standardised predictions."""
    scales = run.module.statistics.value_scale, run.module.statistics.cost_scale
    assert step.state is not None
    gradients = []
    for which in ("goal", "loss"):
        standard = [
            (p / s).requires_grad_() for p, s in zip((step.prediction.value, step.prediction.cost), scales, strict=True)
        ]
        p = ResponsePrediction(standard[0] * scales[0], standard[1] * scales[1])
        if which == "goal":
            state = GoalState.from_tensors(step.state)
            out = callback.regularizer(step.batch, p, state, width_factor=factor) * weight / scales[0]
        else:
            shares = torch.tensor(run.module.statistics.arm_share)
            out = -response_losses(step.batch, p, shares, "continuous", "continuous", *scales).mean()
        out.backward()
        gradients.append(torch.cat([x.grad.flatten() for x in standard if x.grad is not None]).double())
    up, down = gradients
    return [float(up.norm()), float(down.norm()), float(up @ down / up.norm() / down.norm())]


@pytest.mark.parametrize("source", [Source(), Source("batch")])
def test_sizes_and_angle_of_the_gradients(tmp_path: Path, source: Source) -> None:
    schedule = Schedule(2.0, 1, ramp_epochs=1.5, width_start=2.0, width_end=0.5)
    callback = objective(schedule=schedule, source=source, form=GoalForm(entropy=0.5))
    run = fit(tmp_path, callback)
    assert run.module.schema.value_kind == run.module.schema.cost_kind == "continuous"
    for s in range(EPOCH + 1, LAST):
        weight, width = run.notes.of("weight")[s], run.notes.of("width")[s]
        found = [run.notes.of(name)[s] for name in GRADIENTS]
        assert found == pytest.approx(direct(run, callback, run.spy.steps[s], weight, width), rel=1e-4, abs=1e-6), s
        assert 0 < abs(found[2]) < 1
    # A goal of no weight, at the start of the ramp, has no direction.
    assert [run.notes.of(name)[EPOCH] for name in ("gradient_goal", "gradient_cosine")] == [0.0, 0.0]


def test_the_goal_that_is_logged_is_the_one_in_the_loss(tmp_path: Path) -> None:
    run = fit(tmp_path, objective(NES(pairs=2)))
    metrics = run.trainer.callback_metrics
    assert float(metrics["objective/weight"]) == 2.0
    assert float(metrics["objective/multiplier@0.1"]) == pytest.approx(run.notes.of("multiplier@0.1")[2 * EPOCH])
    loss = metrics["train/prediction_loss_step"] - metrics["train/goal_step"]
    assert float(metrics["train/loss_step"]) == pytest.approx(float(loss), rel=1e-5)


def test_only_where_the_trainer_logs(tmp_path: Path) -> None:
    run = fit(tmp_path, objective(source=Source("batch")), log_every_n_steps=5)
    for name in ("multiplier@0.1", "changed@0.4", *OF_STEPS):
        assert sorted(run.notes.of(name)) == [9, 14, 19]
    assert fit(tmp_path, objective(), log_every_n_steps=0).notes.of("weight") == {}


def test_rows_of_a_table_and_no_complaint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        logger = CSVLogger(tmp_path, name="", version="csv", flush_logs_every_n_steps=3)
        fit(tmp_path, objective(source=Source(every_n_steps=3)), logger=logger, log_every_n_steps=4)
    text = " ".join([str(w.message) for w in said] + [r.getMessage() for r in caplog.records if r.levelno >= 30])
    assert "objective/" not in text
    assert "budgets of" not in text
    with open(tmp_path / "csv" / "metrics.csv", newline="") as f:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(f)]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    refreshed = [row for row in rows if "objective/multiplier@0.1" in row]
    assert [int(row["step"]) for row in refreshed] == list(range(EPOCH, LAST, 3))
    assert [int(row["epoch"]) for row in refreshed] == [s // EPOCH for s in range(EPOCH, LAST, 3)]
    assert [int(row["step"]) for row in rows if "objective/weight" in row] == [11, 15, 19, 23]


@pytest.mark.parametrize("source", [Source(every_n_steps=1), Source("batch")])
def test_budgets_that_do_not_bind_are_told_once(tmp_path: Path, source: Source) -> None:
    def told(callback: BudgetObjective, resume: Path | None = None) -> list[str]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run = fit(tmp_path, callback, [SaveAfter(tmp_path, (13,))], resume=resume)
        assert run.notes.of(f"multiplier@{callback.targets.names[1]}")[LAST - 1] == 0
        shown = [warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in said]
        return [text for text in shown if "multiplier is 0" in text]

    budgets = FixedBudgets((0.1, 50.0))
    (line,) = told(objective(budgets=budgets, source=source))
    assert line.startswith("objective.budgets:1: UserWarning: budgets of ")
    assert line.count("\n") == 1
    assert told(objective(budgets=budgets, source=source), tmp_path / "13.ckpt") == []
    assert told(objective(multipliers=(1.0, 0.0), source=source)) == []
