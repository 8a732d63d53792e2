"""Cut off after any step and resumed, again and again, training sees every batch once and ends the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from training_runs import small_data, small_module, small_trainer

from lightning_budget.training.export import read_checkpoint
from lightning_budget.training.strategy import TorchRecStrategy

EPOCHS, EVERY = 5, 3
FORMATS = ("full", "sharded", "sharded_async")


class CutOffError(Exception):
    pass


class Diary(L.Callback):
    """Epoch, place and rows of every step; a checkpoint after every third; the end without warning after ``stop``."""

    def __init__(self, path: Path, stop: int | None) -> None:
        self.path, self.stop = path, stop
        self.steps: dict[int, tuple[int, int, list[int], float]] = {}
        self.starts: list[int] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.starts.append(trainer.current_epoch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self.steps[step] = (trainer.current_epoch, batch_idx, batch.row.tolist(), float(outputs["loss"]))
        if step % EVERY == 0:
            trainer.save_checkpoint(self.path)
        if step == self.stop:
            raise CutOffError


TARNET: dict[str, Any] = {
    "name": "tarnet",
    "embedding_dim": 4,
    "dense_hidden": [8],
    "trunk_hidden": [8],
    "head_hidden": 4,
}
DESCRIBED = {**TARNET, "name": "described_tarnet", "share_doses": 1, "sensitivity": True, "user_history": True}
DESCRIBED |= {"value_head": "funnel", "cost_head": "funnel"}


def run(
    path: Path, stop: int | None = None, resume: bool = False, kind: str = "full", model: dict[str, Any] = TARNET
) -> Diary:
    data, diary = small_data(), Diary(path, stop)
    strategy = TorchRecStrategy(checkpoint=kind)
    trainer = small_trainer(path.parent, [diary], strategy=strategy, max_epochs=EPOCHS, limit_val_batches=0)
    try:
        trainer.fit(small_module(data, model=model), data, ckpt_path=str(path) if resume else None)
        strategy._checkpoint = "full"
        trainer.save_checkpoint(path.with_name("end.ckpt"))
    except CutOffError:
        pass
    return diary


# Every eighth step is the last of its epoch: what is saved after step 24 stands between the last batch and the end.
@pytest.mark.parametrize(
    ("stops", "model"),
    [
        ([4, 7, 10, 13, 17, 22], TARNET),
        ([24, 27, 30, 34], TARNET),
        ([25, 29, 33, 39], TARNET),
        ([24, 24, 26, 28], TARNET),
        ([4, 7, 10, 13, 17, 24, 33], DESCRIBED),
    ],
)
def test_every_batch_once(tmp_path: Path, stops: list[int], model: dict[str, Any]) -> None:
    whole = run(tmp_path / "whole" / "a.ckpt", model=model)
    assert len(whole.steps) == EPOCHS * 8
    path = tmp_path / "cut" / "a.ckpt"
    parts = [run(path, stop, i > 0, FORMATS[i % 3], model) for i, stop in enumerate(stops)]
    parts.append(run(path, None, True, model=model))
    seen: set[int] = set()
    for part in parts:
        for step, what in part.steps.items():
            assert what == whole.steps[step], step
        seen |= set(part.steps)
    assert seen == set(whole.steps)
    # An epoch that begins is told so.
    for part in parts[1:]:
        begun = {epoch for epoch, place, _, _ in part.steps.values() if place == 0}
        assert set(part.starts) == begun
    a, b = (read_checkpoint(tmp_path / n / "end.ckpt") for n in ("whole", "cut"))
    for key in ("state_dict", "torchrec_fused_optimizer"):
        for name, tensor in a[key].items():
            torch.testing.assert_close(b[key][name], tensor, rtol=0, atol=0, equal_nan=True, msg=name)
