"""The throughput callback in runs whose parts take a known time at least: each sleeps, and sleep never ends early."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from distributed_runs import finish, start_ranks
from lightning.pytorch.loggers import CSVLogger
from throughput_rank import DAWDLE
from training_runs import small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from lightning_budget.errors import InputError
from lightning_budget.training.callbacks import Throughput
from lightning_budget.training.step_split import PARTS

BATCH, LOG_EVERY = 128, 4
ALL = ("data", *PARTS)
SLEEPS = {"data": 0.05, "embedding": 0.03, "goal": 0.04, "dense": 0.02}


class Clock(L.Callback):
    """Time from the end of one step to the end of the next, by step."""

    def __init__(self) -> None:
        self.ends: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.ends[trainer.global_step] = time.perf_counter()

    def milliseconds(self, step: int) -> float:
        return 1e3 * (self.ends[step] - self.ends[step - 1])


class Slow(L.Callback):
    """Every part but communication takes its time."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.net.sparse_arch.tables.register_forward_pre_hook(lambda *_: time.sleep(SLEEPS["embedding"]))
        pl_module.net.trunk.register_forward_pre_hook(lambda *_: time.sleep(SLEEPS["dense"]))
        pl_module.objective_terms["goal"] = self.goal

    def goal(self, batch: Any, prediction: Any) -> torch.Tensor:
        time.sleep(SLEEPS["goal"])
        return 0 * prediction.value.mean()


def slow_batches(data: CampaignDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = data.train_dataloader
    original = type(loader()).__iter__

    def dawdling(self: Any) -> Iterator[Any]:
        for batch in original(self):
            time.sleep(SLEEPS["data"])
            yield batch

    monkeypatch.setattr(type(loader()), "__iter__", dawdling)


def fit(folder: Path, *callbacks: L.Callback, **changes: Any) -> None:
    data = small_data(batch_size=BATCH)
    settings = {"max_epochs": 2, "log_every_n_steps": LOG_EVERY, "limit_val_batches": 0}
    small_trainer(folder, callbacks, **{**settings, **changes}).fit(small_module(data), data)


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Throughput, Clock, list[dict[str, str]]]:
    """A run of two epochs of 8 steps, step 3 and every fourth profiled, and what was logged."""
    slow_batches(small_data(), monkeypatch)
    throughput, clock = Throughput(every_n_steps=4), Clock()
    fit(tmp_path, Slow(), throughput, clock, logger=CSVLogger(tmp_path, name="", version="csv"))
    with open(tmp_path / "csv" / "metrics.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["throughput/step_ms"]]
    return throughput, clock, rows


def test_parts_take_their_time_and_add_up(slow: tuple[Throughput, Clock, list[dict[str, str]]]) -> None:
    throughput, clock, rows = slow
    logged = throughput.latest
    assert logged.keys() == {
        "throughput/rows_per_second",
        "throughput/step_ms",
        *(f"throughput/{part}_{unit}" for part in ALL for unit in ("ms", "share")),
    }
    # Logged last after step 16: of steps 13 … 16 the last was profiled.
    step = sum(clock.milliseconds(s) for s in (13, 14, 15)) / 3
    assert logged["throughput/step_ms"] == pytest.approx(step, rel=0.05)
    assert sum(logged[f"throughput/{part}_ms"] for part in ALL) == pytest.approx(step, rel=0.05)
    assert sum(logged[f"throughput/{part}_share"] for part in ALL) == pytest.approx(1)
    assert logged["throughput/rows_per_second"] == pytest.approx(1e3 * BATCH / step, rel=0.05)
    assert logged["throughput/data_ms"] >= 1e3 * SLEEPS["data"]
    for part in ("embedding", "goal", "dense"):
        # Divided as in another step, on a machine that may be busy.
        assert logged[f"throughput/{part}_ms"] > 0.6e3 * SLEEPS[part], part
    assert logged["throughput/communication_ms"] < 0.2 * step
    assert [int(row["step"]) for row in rows] == [3, 7, 11, 15]
    assert float(rows[-1]["throughput/goal_ms"]) == logged["throughput/goal_ms"]


def test_first_steps_of_an_epoch_are_left_out(tmp_path: Path) -> None:
    class SlowEpoch(L.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            time.sleep(0.7)

        def on_validation_start(self, *_: Any) -> None:
            time.sleep(0.7)

    throughput = Throughput()
    changes = {"max_epochs": 1, "log_every_n_steps": 8, "limit_val_batches": 1, "val_check_interval": 4}
    fit(tmp_path, SlowEpoch(), throughput, **changes)
    assert throughput.latest["throughput/data_ms"] < 50
    # The tenth step would be the first to be profiled, so nothing is said of the parts.
    assert throughput.latest.keys() == {
        f"throughput/{k}" for k in ("rows_per_second", "step_ms", "data_ms", "data_share")
    }


def test_nothing_stays_behind(tmp_path: Path) -> None:
    seen: list[tuple[int, int, Callable[..., Any]]] = []

    class Look(Slow):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            encoder = pl_module.net.sparse_arch
            hooks = len(encoder._forward_hooks) + len(encoder._forward_pre_hooks)
            seen.append((trainer.global_step, hooks, pl_module.objective_terms["goal"]))

    look, throughput = Look(), Throughput(every_n_steps=2)
    fit(tmp_path, throughput, look, max_epochs=1)
    assert seen == [(step, 0, look.goal) for step in range(1, 9)]
    assert not torch._C._autograd._profiler_enabled()


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    losses: list[list[float]] = []

    class Losses(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            losses[-1].append(float(outputs["loss"]))

    for extra in ([], [Throughput(every_n_steps=3)]):
        losses.append([])
        fit(tmp_path, Losses(), *extra)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 16


def test_a_step_that_raises_ends_its_profile(tmp_path: Path) -> None:
    class Raise(L.Callback):
        def on_after_backward(self, *_: Any) -> None:
            raise RuntimeError("of this test")

    with pytest.raises(RuntimeError, match="of this test"):
        fit(tmp_path, Throughput(every_n_steps=1), Raise())
    assert not torch._C._autograd._profiler_enabled()


def test_profiles_of_others_go_first(tmp_path: Path) -> None:
    throughput = Throughput(every_n_steps=1)
    with torch.autograd.profiler.profile(use_kineto=True):
        fit(tmp_path, throughput, max_epochs=1)
    assert "throughput/dense_ms" not in throughput.latest
    assert throughput.latest["throughput/rows_per_second"] > 0


def test_bad_interval() -> None:
    with pytest.raises(InputError, match="every_n_steps=0"):
        Throughput(every_n_steps=0)


def test_waiting_for_another_rank_is_communication(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    ranks = start_ranks(2, "throughput_rank.py", str(result))
    outputs = finish(ranks, timeout=150)
    assert [r.returncode for r in ranks] == [0, 0], "\n".join(outputs)
    logged = json.loads(result.read_text())
    assert logged["throughput/communication_ms"] > 0.6e3 * DAWDLE
    # Of both ranks: each takes half of a batch.
    assert logged["throughput/rows_per_second"] == pytest.approx(1e3 * BATCH / logged["throughput/step_ms"])


@pytest.mark.gpu
def test_on_a_gpu_the_parts_add_up(tmp_path: Path) -> None:
    throughput = Throughput(every_n_steps=4)
    fit(tmp_path, Slow(), throughput, accelerator="gpu", max_epochs=4)
    parts = {part: throughput.latest[f"throughput/{part}_ms"] for part in ALL}
    assert sum(parts.values()) == pytest.approx(throughput.latest["throughput/step_ms"], rel=0.05)
    # The device stands still while the host sleeps in the goal.
    assert parts["goal"] > 0.6e3 * SLEEPS["goal"]
    assert parts["embedding"] > 0.6e3 * SLEEPS["embedding"]
