"""A checkpoint is plain PyTorch: it scores without Lightning, process group or configs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_runs import EpochCheckpoints, environment, small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from lightning_budget.batch import ResponsePrediction
from lightning_budget.training.export import load_model, load_schema
from lightning_budget.training.phase import Phase, predict_best

PLAIN = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = sys.modules["hydra"] = None
import torch
from lightning_budget.data.users import read_users
from lightning_budget.training.export import load_model, load_schema
model = load_model(sys.argv[1])
users, ids = read_users(sys.argv[2], load_schema(sys.argv[1]))
batch = users.batch(torch.arange(len(users)))
with torch.no_grad():
    out = model(batch.dense, batch.sparse)
assert not torch.distributed.is_initialized()
torch.save((out.value, out.cost), sys.argv[3])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignDataModule, Path, ResponsePrediction]:
    """Data, checkpoint, and what Lightning predicts for the test split with it."""
    folder = tmp_path_factory.mktemp("phase")
    data, phase = small_data(), Phase("two_stage", folder)
    module = small_module(data)
    trainer = small_trainer(folder, [EpochCheckpoints(folder)])
    trainer.fit(module, data)
    (folder / "0.ckpt").rename(phase.best)  # not the last epoch: the weights must come from the file
    return data, phase.best, predict_best(phase, trainer, module, data, data.test)


def test_plain_predictions_are_those_of_the_trainer(
    trained: tuple[CampaignDataModule, Path, ResponsePrediction],
) -> None:
    data, path, expected = trained
    model, batch = load_model(path), data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        prediction = model(batch.dense, batch.sparse)
    torch.testing.assert_close(prediction.value, expected.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prediction.cost, expected.cost, rtol=1e-6, atol=1e-6)
    assert not model.training
    assert load_schema(path) == data.schema
    last = load_model(path.with_name("1.ckpt"))
    with torch.no_grad():
        assert float((last(batch.dense, batch.sparse).value - expected.value).abs().max()) > 1e-3


def test_loads_as_weights_only_and_holds_plain_tensors(
    trained: tuple[CampaignDataModule, Path, ResponsePrediction],
) -> None:
    saved = torch.load(trained[1], weights_only=True)
    assert all(type(v) is torch.Tensor for v in saved["state_dict"].values())
    assert all(type(v) is torch.Tensor for v in saved["torchrec_fused_optimizer"].values())


def test_without_lightning(trained: tuple[CampaignDataModule, Path, ResponsePrediction], tmp_path: Path) -> None:
    from lightning_budget.data.users import write_users

    data, path, expected = trained
    write_users(data.test, data.schema, tmp_path / "users.parquet")
    arguments = [str(path), str(tmp_path / "users.parquet"), str(tmp_path / "out.pt")]
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, *arguments], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    value, cost = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(value, expected.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cost, expected.cost, rtol=1e-6, atol=1e-6)
