"""A run that is cut anywhere and resumed goes on bit for bit: weights, state of the callback, and what is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from objective_runs import EPOCH, SaveAfter, assert_same, fit, objective
from training_runs import EpochCheckpoints, weights

from lightning_budget.estimators import NES, ScoreFunction
from lightning_budget.losses.budget_regularizer import GoalForm
from lightning_budget.losses.budgets import BudgetPrior
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source

ANNEALED = Schedule(2.0, warm_start_epochs=1, ramp_epochs=1.5, width_start=2.0, width_end=0.5)
CASES: dict[str, dict[str, Any]] = {
    "full": {"schedule": ANNEALED, "form": GoalForm(cost_term="mu")},
    "every five steps": {"source": Source(every_n_steps=5)},
    "batch": {"source": Source("batch"), "form": GoalForm(weighting="hajek")},
    "running": {"source": Source("running", momentum=0.8)},
    "nes": {"estimator": NES(pairs=2), "form": GoalForm(cost_term="mu"), "source": Source("batch")},
    "score function": {"estimator": ScoreFunction(samples=2), "form": GoalForm(weighting="hajek")},
    "prior": {"budgets": BudgetPrior("uniform", 0.05, 0.5, count=3), "source": Source(every_n_steps=5)},
    "cross-fitted": {"form": GoalForm(baseline="centred"), "outcome_model": "cross_fitted"},
}
# Inside an epoch, and after its end.
CUTS = ("11.ckpt", "epoch/1.ckpt")
# Where a refresh is due, and between an epoch's last batch and its end.
MORE_CUTS = {"every five steps": ("13.ckpt", "16.ckpt"), "nes": ("16.ckpt",)}


def build(case: str) -> BudgetObjective:
    return objective(**CASES[case])


@pytest.mark.parametrize("case", CASES)
def test_cut_and_resumed(tmp_path: Path, case: str) -> None:
    ends, states, numbers = [], [], []
    cuts = [SaveAfter(tmp_path, (11, 13, 16)), EpochCheckpoints(tmp_path / "epoch")]
    names = (*CUTS, *MORE_CUTS.get(case, ()))
    for cut in (None, *names):
        callback = build(case)
        run = fit(tmp_path, callback, [] if cut else cuts, resume=None if cut is None else tmp_path / cut)
        run.trainer.save_checkpoint(tmp_path / "end.ckpt")
        ends.append(weights(tmp_path / "end.ckpt"))
        states.append(torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]["BudgetObjective"])
        numbers.append(run.notes.numbers)
        assert run.trainer.global_step == 3 * EPOCH
    assert any(step == 3 * EPOCH - 1 for _, step in numbers[0])
    for cut, end, state, logged in zip(names, ends[1:], states[1:], numbers[1:], strict=True):
        assert_same(end, ends[0], f"weights after {cut}")
        assert_same(state, states[0], f"state after {cut}")
        first = {"11.ckpt": 11, "13.ckpt": 13}.get(cut, 16)
        assert logged == {k: v for k, v in numbers[0].items() if k[1] >= first}, cut


def test_a_run_without_the_goal_can_be_gone_on_with_inside_an_epoch(tmp_path: Path) -> None:
    fit(tmp_path, None, [SaveAfter(tmp_path, (13,))])
    callback = objective()
    notes = fit(tmp_path, callback, resume=tmp_path / "13.ckpt").notes
    assert sorted(notes.of("multiplier@0.1")) == [13, 16]


def test_other_targets_after_a_cut_are_measured_at_once(tmp_path: Path) -> None:
    for source in (Source(), Source("running")):
        fit(tmp_path, objective(source=source), [SaveAfter(tmp_path, (13,))])
        callback = objective(multipliers=(1.0, 2.0, 3.0), source=source)
        notes = fit(tmp_path, callback, resume=tmp_path / "13.ckpt").notes
        assert min(notes.of("multiplier@lambda3")) == 13
        assert "changed@lambda3" not in {name for name, step in notes.numbers if step == 13}
