"""Two processes see the same global batches, so the whole run is that of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_runs import EPOCHS, OTHER_RESAMPLE, PHASES, STEPS, assert_same_report, logged, report, weights


@pytest.mark.parametrize("phase", PHASES)
def test_same_losses_and_validation_metrics(one_process: Path, two_processes: Path, phase: str) -> None:
    one, two = (logged(folder, phase, "train/", "val/") for folder in (one_process, two_processes))
    assert one.keys() == two.keys()
    assert sum(name == "train/loss_step" for name, _ in one) == EPOCHS * STEPS
    assert sum(name == "val/eom_hajek" for name, _ in one) == EPOCHS
    # The loss is the prediction loss, about 1.5, less the goal, and may come near 0.
    worst = max(one, key=lambda k: abs(one[k] - two[k]) / max(1e-2, abs(one[k])))
    assert two[worst] == pytest.approx(one[worst], rel=1e-4, abs=1e-6), worst


@pytest.mark.parametrize("phase", PHASES)
def test_same_weights_and_optimizer_states(one_process: Path, two_processes: Path, phase: str) -> None:
    one, two = (weights(folder / phase / "last.ckpt") for folder in (one_process, two_processes))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)


def test_same_report(one_process: Path, two_processes: Path) -> None:
    assert_same_report(report(one_process), report(two_processes), rtol=1e-4, ends=OTHER_RESAMPLE)


def test_the_phases_differ_after_the_warm_start_only(one_process: Path) -> None:
    base, end = (logged(one_process, phase, "train/prediction_loss_step") for phase in PHASES)
    assert base.keys() == end.keys()
    warm = [k for k in base if k[1] < STEPS]
    assert len(warm) == STEPS
    assert all(base[k] == end[k] for k in warm)
    # Step 16 is the first with the goal in its gradient, step 17 the first after that update.
    assert base["train/prediction_loss_step", STEPS] == end["train/prediction_loss_step", STEPS]
    assert all(base[k] != end[k] for k in base if k[1] > STEPS)
    goal = logged(one_process, "end_to_end", "train/goal_step")
    assert sorted(step for _, step in goal) == list(range(STEPS, EPOCHS * STEPS))
