"""What only a GPU can show. No machine has run these yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_runs import assert_same_weights, losses, run_jobs
from training_runs import EpochCheckpoints, small_data, small_module, small_trainer

from lightning_budget.training.export import load_model

pytestmark = pytest.mark.gpu


def fit(folder: Path, accelerator: str, **changes: Any) -> torch.Tensor:
    folder.mkdir()
    data = small_data(pin_memory=accelerator == "gpu")
    trainer = small_trainer(folder, [EpochCheckpoints(folder)], accelerator=accelerator)
    trainer.fit(small_module(data, **changes), data)
    batch = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        return load_model(folder / "1.ckpt")(batch.dense, batch.sparse).value


def test_one_gpu_learns_what_a_cpu_learns(tmp_path: Path) -> None:
    cpu, gpu = (fit(tmp_path / a, a) for a in ("cpu", "gpu"))
    torch.testing.assert_close(gpu, cpu, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["adam", "partial_rowwise_adam"])
def test_the_adam_family(tmp_path: Path, name: str) -> None:
    trained = fit(tmp_path / "adam", "gpu", embedding_optimizer=name, embedding_lr=0.01)
    assert bool(trained.isfinite().all())
    assert float((trained - fit(tmp_path / "adagrad", "gpu")).abs().max()) > 1e-3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("types", ["row_wise", "table_wise"])
def test_two_gpus_over_nccl(tmp_path: Path, types: str) -> None:
    for world in (1, 2):
        run_jobs(world, [{"name": types, "types": [types], "accelerator": "gpu"}], tmp_path / str(world))
    assert losses(tmp_path / "2", types) == pytest.approx(losses(tmp_path / "1", types), rel=1e-4)
    assert_same_weights(tmp_path / "2" / f"{types}.ckpt", tmp_path / "1" / f"{types}.ckpt", atol=1e-4)


def test_a_step_makes_the_host_wait_for_nothing(tmp_path: Path) -> None:
    data = small_data(pin_memory=True)
    module = small_module(data)
    trainer = small_trainer(tmp_path, accelerator="gpu", limit_val_batches=0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.fit(module, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
