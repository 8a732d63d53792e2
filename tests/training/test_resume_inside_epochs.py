"""Cut off after any step and resumed, again and again, training sees every batch once and ends the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from training_runs import small_data, small_module, small_trainer

from lightning_budget.training.export import load_model, read_checkpoint
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


def test_a_history_is_of_whole_epochs_once_there_is_one(tmp_path: Path) -> None:
    data = small_data()
    module, rows = small_module(data, model=DESCRIBED), len(data.train)
    small_trainer(tmp_path, max_steps=11).fit(module, data)  # ends inside the second epoch
    history = module.net.user_history  # type: ignore[union-attr]
    known = history.counts.clone()
    assert known.sum() == rows
    assert history.running.sum() < rows / 2
    small_trainer(tmp_path, max_epochs=1).fit(module, data)
    assert torch.equal(history.counts, known)  # not twice, and nothing of the run before
    assert history.running is None


class Score(L.Callback):
    """A checkpoint after the third step, and what validation would predict then."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)
            pl_module.net.settle(whole=False)
            pl_module.eval()
            with torch.no_grad():
                self.value = pl_module(small_data().val.batch(torch.arange(64))).value
            pl_module.train()


def test_a_checkpoint_from_inside_the_first_epoch_scores_as_its_validation_would(tmp_path: Path) -> None:
    data, score = small_data(), Score(tmp_path / "a.ckpt")
    small_trainer(tmp_path, [score], max_steps=4).fit(small_module(data, model=DESCRIBED), data)
    plain = load_model(tmp_path / "a.ckpt")
    assert plain.user_history.running is None
    assert plain.user_history.counts.any()
    assert plain.user_history.effects.any()
    batch = data.val.batch(torch.arange(64))
    with torch.no_grad():
        torch.testing.assert_close(plain(batch.dense, batch.sparse).value, score.value)
