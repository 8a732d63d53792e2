"""Models far from their start, their checkpoints, and users of every shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from random_trials import random_schema, random_statistics, random_table
from torch import Tensor

from lightning_budget.batch import RCTBatch
from lightning_budget.models.registry import build_model
from lightning_budget.models.tarnet import TARNet
from lightning_budget.schema import DataSchema
from lightning_budget.serving import ServingModel
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.serving_export import to_serving

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = {
    "name": "tarnet",
    "embedding_dim": 4,
    "dense_hidden": [8],
    "trunk_hidden": [16, 12],
    "head_hidden": 4,
    "dropout": 0.3,
}
SIZES = (0, 1, 2, 7, 300)
"""Numbers of users."""


def trained(schema: DataSchema, statistics: DataStatistics, seed: int = 0) -> TARNet:
    """A model for which users, ids and arms all make a difference."""
    torch.manual_seed(seed)
    model = build_model(CONFIG, schema, statistics)
    with torch.no_grad():
        for heads in (model.value_heads, model.cost_heads):
            heads.out.normal_()
            heads.bias.normal_(std=0.1)
        for name, parameter in model.named_parameters():
            if "embedding_bags" in name:
                parameter.normal_()
            elif name.startswith("trunk") or "heads.hidden.weight" in name:
                parameter.mul_(3)
    return model.eval()


def case(seed: int = 0, multiplier: float | None = None, **changes: Any) -> tuple[TARNet, ServingModel]:
    """A training model and its form for serving."""
    schema, statistics = random_schema(**changes), random_statistics()
    if not schema.dense:
        statistics = DataStatistics.from_dict({**statistics.to_dict(), "dense_mean": [], "dense_std": []})
    model = trained(schema, statistics, seed)
    return model, to_serving(model, schema, statistics.to_dict(), multiplier)


def batch(rows: int, seed: int = 0, lists: bool = True) -> RCTBatch:
    """Users with lists of none to three ids, or with empty ones only."""
    return random_table(max(rows, 3), seed=seed, lists=lists).batch(torch.arange(rows))


def write_checkpoint(model: TARNet, schema: DataSchema, statistics: DataStatistics, path: Path) -> None:
    """What training leaves behind, as far as scoring needs it."""
    hyper = {"schema": schema.to_dict(), "statistics": statistics.to_dict(), "model": CONFIG}
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {f"net.{k}": v for k, v in model.state_dict().items()}
    torch.save({"hyper_parameters": hyper, "state_dict": state}, path)


def run_without(modules: str, code: str, *arguments: str, cwd: Path) -> str:
    """Run code in a process where the modules cannot be imported; what it printed."""
    blocked = f"import sys\nsys.modules.update(dict.fromkeys({modules.split()!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", blocked + code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_equal(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> None:
    """Value, cost and treatment to the last bit."""
    for g, w in zip(got, wanted, strict=True):
        assert g.dtype == w.dtype
        assert torch.equal(g, w)
