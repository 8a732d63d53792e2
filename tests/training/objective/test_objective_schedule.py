"""Weight of the goal and width of its smoothing, as formulas and as a run has them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from objective_runs import EPOCH, fit, objective

from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.training.objective.progress import epochs_done, epochs_of_run
from lightning_budget.training.objective.schedule import Schedule


def test_the_weight_rises_linearly_after_the_warm_start() -> None:
    schedule = Schedule(weight=3.0, warm_start_epochs=2, ramp_epochs=4.0)
    found = [schedule.weight_at(x) for x in (2.0, 2.5, 3.0, 5.0, 6.0, 7.5)]
    assert found == pytest.approx([0.0, 0.375, 0.75, 2.25, 3.0, 3.0])
    assert [schedule.is_active(e) for e in range(4)] == [False, False, True, True]
    assert Schedule(weight=3.0, warm_start_epochs=2).weight_at(2.0) == 3.0
    assert Schedule(weight=3.0, warm_start_epochs=0).is_active(0)


def test_the_width_goes_geometrically_from_start_to_end() -> None:
    schedule = Schedule(warm_start_epochs=2, width_start=4.0, width_end=0.25)
    # At the middle of what follows the warm start: the geometric mean.
    found = [schedule.width_at(x, 6.0) for x in (2.0, 3.0, 4.0, 5.0, 6.0, 7.0)]
    assert found == pytest.approx([4.0, 2.0, 1.0, 0.5, 0.25, 0.25])
    assert schedule.width_at(100.0, math.inf) == 4.0
    assert Schedule(warm_start_epochs=2, width_start=4.0).width_at(2.0, 2.0) == 1.0


class StopAfter(L.Callback):
    """The end of a run that has none."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def trainer(**settings: Any) -> Any:
    return SimpleNamespace(
        **{"max_epochs": 5, "max_steps": -1, "num_training_batches": 8, "current_epoch": 3, **settings}
    )


def test_length_of_a_run_and_how_much_is_done() -> None:
    assert epochs_of_run(trainer()) == 5.0
    assert epochs_of_run(trainer(max_steps=20)) == 2.5
    assert epochs_of_run(trainer(max_steps=80)) == 5.0
    assert epochs_of_run(trainer(max_epochs=-1, max_steps=20)) == 2.5
    assert epochs_of_run(trainer(max_epochs=None)) == math.inf
    # Without a length of the epoch, steps say nothing about epochs.
    assert epochs_of_run(trainer(max_epochs=-1, max_steps=20, num_training_batches=math.inf)) == math.inf
    assert epochs_done(trainer(), 2) == 3.25
    assert epochs_done(trainer(num_training_batches=math.inf), 2) == 3.0


@pytest.mark.parametrize("stop", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 20}, {"max_epochs": -1}])
def test_a_run_has_them(tmp_path: Path, stop: dict[str, int]) -> None:
    schedule = Schedule(2.0, warm_start_epochs=1, ramp_epochs=0.5, width_start=2.0, width_end=0.5)
    steps = stop.get("max_steps", 3 * EPOCH)
    extra = [StopAfter(steps)] if stop == {"max_epochs": -1} else []
    notes = fit(tmp_path, objective(schedule=schedule), extra, module={"schedule": "constant"}, **stop).notes
    weight, width = {}, {}
    for step in range(EPOCH, steps):
        since = step / EPOCH - 1
        u = 0.0 if extra else since / (steps / EPOCH - 1)
        weight[step], width[step] = 2.0 * min(1.0, since / 0.5), 2.0 ** (1 - u) * 0.5**u
    assert notes.of("weight") == pytest.approx(weight)
    assert notes.of("width") == pytest.approx(width)


def test_a_refresh_at_the_start_of_an_epoch_has_the_width_of_its_first_step(tmp_path: Path) -> None:
    callback = objective(schedule=Schedule(2.0, 1, width_start=2.0, width_end=0.5))
    seen: list[float] = []
    measure = BudgetRegularizer.measure

    def spied(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["width_factor"])
        return measure(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BudgetRegularizer, "measure", spied)
        width = fit(tmp_path, callback).notes.of("width")
    assert seen == pytest.approx([width[EPOCH], width[2 * EPOCH]])
