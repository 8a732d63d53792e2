"""Which checkpoint is kept, and when a run ends early: only epochs of the second half compete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from training_runs import small_data, small_module, small_trainer

from lightning_budget.training.callbacks import SecondHalfStopping
from lightning_budget.training.export import read_checkpoint
from lightning_budget.training.phase import Phase, checkpoints
from lightning_budget.training.selection import first_candidate

SCORE = "val/score"


class Scores(L.Callback):
    """Log a given score for every epoch, and end the run after the epoch ``until``."""

    def __init__(self, scores: Sequence[float], until: int | None) -> None:
        self.scores, self.until = scores, until

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log(SCORE, self.scores[trainer.current_epoch])
        if trainer.current_epoch == self.until:
            trainer.should_stop = True


def fit(
    folder: Path, scores: Sequence[float], until: int | None = None, resume: bool = False, *more: L.Callback
) -> L.Trainer:
    """A phase whose epochs score as told."""
    data, phase = small_data(), Phase("two_stage", folder)
    callbacks = [Scores(scores, until), *more, *checkpoints(phase, SCORE)]
    trainer = small_trainer(folder, callbacks, max_epochs=len(scores), enable_checkpointing=True)
    trainer.fit(small_module(data), data, ckpt_path=str(phase.last) if resume else None)
    return trainer


def best_epoch(folder: Path) -> int:
    return int(read_checkpoint(folder / "best.ckpt")["epoch"])


@pytest.mark.parametrize(("epochs", "first"), [(8, 4), (7, 3), (2, 1), (1, 0), (-1, 0), (None, 0)])
def test_first_candidate(epochs: int | None, first: int) -> None:
    trainer: Any = SimpleNamespace(max_epochs=epochs)
    assert first_candidate(trainer) == first


def test_only_the_second_half_competes(tmp_path: Path) -> None:
    fit(tmp_path, [9.0, 8.0, 7.0, 1.0, 3.0, 2.0])
    assert best_epoch(tmp_path) == 4


def test_a_run_cut_off_in_the_first_half_has_its_best_so_far(tmp_path: Path) -> None:
    fit(tmp_path, [8.0, 9.0, 7.0, 1.0, 3.0, 2.0], until=2)
    assert best_epoch(tmp_path) == 1


@pytest.mark.parametrize("until", [1, 2, 3, 4])
def test_the_same_checkpoint_after_a_resumption(tmp_path: Path, until: int) -> None:
    scores = [9.0, 8.0, 7.0, 5.0, 2.0, 3.0]
    fit(tmp_path, scores, until)
    fit(tmp_path, scores, resume=True)
    assert best_epoch(tmp_path) == 3


def test_early_stopping_counts_from_the_second_half(tmp_path: Path) -> None:
    stop = SecondHalfStopping(SCORE, mode="max", patience=2)
    trainer = fit(tmp_path, [9.0, 8.0, 7.0, 6.0, 2.0, 1.0, 1.5, 3.0], None, False, stop)
    # The fifth epoch sets the mark, the sixth and the seventh do not pass it.
    assert trainer.current_epoch == 7
    assert best_epoch(tmp_path) == 4
