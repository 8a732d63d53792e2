"""The strategy against a plain loop over the same batches: unsharded tables, no Lightning, no fused kernel."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from training_runs import EpochCheckpoints, small_data, small_module, small_trainer

from datamodules import RCTDataModule
from lightning_budget.losses.response import response_losses
from lightning_budget.models.registry import build_model
from lightning_budget.models.tarnet import TARNet
from lightning_budget.training.export import load_model
from lightning_budget.training.module import BudgetModule

EPOCHS = 2
PLAIN: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "rowwise_adagrad": partial(RowWiseAdagrad, eps=1e-8),
    "adagrad": partial(torch.optim.Adagrad, eps=1e-8),
    "sgd": torch.optim.SGD,
}


class Losses(L.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def untrained(module: BudgetModule) -> TARNet:
    """The network that the module starts from, with ordinary tables that no optimizer is attached to."""
    described = copy.deepcopy(module)
    described.configure_model()
    assert described.net is not None
    net = build_model(module.hparams["model"], module.schema, module.statistics)
    net.load_state_dict(described.net.state_dict())
    return net


def reference(
    net: TARNet, module: BudgetModule, data: RCTDataModule, clip: float | None = None, late: int = 0
) -> tuple[TARNet, list[float]]:
    """Train ``net`` as the module would be; the tables' rate lags ``late`` steps behind."""
    tables = list(net.sparse_arch.parameters())
    dense = [p for p in net.parameters() if all(p is not t for t in tables)]
    adam = torch.optim.Adam(dense, lr=module.hparams["lr"])
    kind = PLAIN[module.hparams["embedding_optimizer"]]
    in_tables = kind(tables, lr=module.hparams["embedding_lr"])
    loader = data.train_dataloader()
    steps, losses = EPOCHS * len(loader), []
    cosine = module.hparams["schedule"] == "cosine"
    kinds = module.schema.value_kind, module.schema.cost_kind
    scales = module.statistics.value_scale, module.statistics.cost_scale
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for optimizer, lag in ((adam, 0), (in_tables, late)):
                start = module.hparams["lr" if optimizer is adam else "embedding_lr"]
                done = max(0, len(losses) - lag) / steps
                optimizer.param_groups[0]["lr"] = start * (1 + math.cos(math.pi * done)) / 2 if cosine else start
            prediction = net(batch.dense, batch.sparse)
            loss = response_losses(batch, prediction, module.arm_share, *kinds, *scales).mean()
            adam.zero_grad()
            in_tables.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(dense, clip)
            adam.step()
            in_tables.step()
            losses.append(float(loss.detach()))
    return net, losses


def distance(a: TARNet, b: TARNet) -> float:
    other = dict(b.named_parameters())
    return max(float((p - other[name]).abs().max()) for name, p in a.named_parameters())


@pytest.mark.parametrize(
    ("schedule", "seed", "clip", "optimizer"),
    [
        ("cosine", 0, None, "rowwise_adagrad"),
        ("constant", 3, 0.05, "rowwise_adagrad"),
        ("cosine", 1, None, "adagrad"),
        ("cosine", 2, None, "sgd"),
    ],
)
def test_equals_a_plain_loop(tmp_path: Path, schedule: str, seed: int, clip: float | None, optimizer: str) -> None:
    data = small_data()
    rate = 5.0 if optimizer == "sgd" else 0.05
    module = small_module(data, schedule=schedule, seed=seed, embedding_optimizer=optimizer, embedding_lr=rate)
    start = untrained(module)
    expected, losses = reference(copy.deepcopy(start), module, data, clip)
    seen = Losses()
    trainer = small_trainer(tmp_path, [seen, EpochCheckpoints(tmp_path)], max_epochs=EPOCHS, gradient_clip_val=clip)
    trainer.fit(module, data)
    trained = load_model(tmp_path / f"{EPOCHS - 1}.ckpt")
    assert seen.losses == pytest.approx(losses, abs=1e-5)
    assert distance(trained, expected) < 1e-5
    # Both moved, so that 1e-5 means something.
    moved = dict(start.named_parameters())
    for name, p in trained.named_parameters():
        assert float((p - moved[name]).abs().max()) > 1e-3, name
    if schedule == "cosine":
        late, _ = reference(copy.deepcopy(start), module, data, late=1)
        assert distance(late, expected) > 1e-3


def test_the_checkpoint_names_both_optimizers(tmp_path: Path) -> None:
    data = small_data()
    small_trainer(tmp_path, [EpochCheckpoints(tmp_path)], max_epochs=1).fit(small_module(data), data)
    saved = torch.load(tmp_path / "0.ckpt", weights_only=True)
    assert len(saved["torchrec_fused_optimizer"]) == len(data.schema.sparse)
    for feature, (key, state) in zip(
        sorted(f.name for f in data.schema.sparse), sorted(saved["torchrec_fused_optimizer"].items()), strict=True
    ):
        rows = next(f.num_embeddings for f in data.schema.sparse if f.name == feature)
        assert f"embedding_bags.t_{feature}" in key or f".{feature}." in key, key
        assert state.shape[0] == rows
        assert float(state.max()) > 0
    shapes = [tuple(p.shape) for p in untrained(small_module(data)).parameters()]
    tables = [tuple(v.shape) for k, v in saved["state_dict"].items() if "embedding_bags" in k]
    assert len(saved["optimizer_states"][0]["state"]) == len(shapes) - len(tables)
