"""Small runs: in this process for the strategy, by the command line for everything around it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.types import RunMode

import lightning_budget.training.strategy  # registers `torchrec`  # noqa: F401
from datamodules import CampaignDataModule, RCTDataModule
from lightning_budget.training.module import BudgetModule
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "experiment=small_campaign",
    "seed=1",
    "data.train_rows=4096",
    "data.val_rows=2048",
    "data.test_rows=2048",
    "data.users=300",
    "data.batch_size=256",
    # Fast and noisy enough that the best epoch of the second phase is neither its first nor its last.
    "model.optimizer.lr=0.02",
    "model.optimizer.embedding_lr=0.1",
    "objective.warm_start_epochs=1",
    "objective.weight=3",
    "objective.prior_rows=0",
    "trainer.max_epochs=4",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "logger=csv",
    "logger.csv.flush_logs_every_n_steps=16",
    "resamples=20",
]
FEW = [override for override in SMALL if override.startswith(("experiment=", "data.", "logger="))]
"""For what is refused: a mistake among few overrides is found sooner."""

EPOCHS, STEPS = 4, 16
PHASES = ("two_stage", "end_to_end")
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")


def environment() -> dict[str, str]:
    """Of a subprocess: the checkout importable, one thread, everything printed at once."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH")) if p)
    # A trainer in this process has named itself the master of a group: nothing to a new one.
    kept = {k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT", *RANKS)}
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}


def start(script: str, *overrides: str, cwd: Path) -> Forked:
    """Start a script in a session of its own, its output to be read."""
    return Forked([ROOT / "scripts" / script, *overrides], environment(), cwd)


def run(script: str, *overrides: str, cwd: Path) -> str:
    """Run a script to its end; what it printed."""
    with start(script, *overrides, cwd=cwd) as process:
        try:
            output, _ = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, output
    return output


def kill_at(line: str, *overrides: str, cwd: Path) -> None:
    """Train, and kill all processes of the run without warning as soon as a line that starts with ``line`` appears."""
    with start("train.py", *overrides, cwd=cwd) as process:
        seen = []
        for text in process.stdout:
            seen.append(text)
            if text.lstrip().startswith(line):
                os.killpg(process.pid, signal.SIGKILL)
                break
        process.stdout.read()
        process.wait(timeout=60)
    assert process.returncode == -signal.SIGKILL, "".join(seen)


def call(main: Callable[[], None], *overrides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a script's ``main`` in this process, as its command line would."""
    monkeypatch.setattr(sys, "argv", ["script", *overrides])
    # Hydra composes all of the config once more only to ask it whether this is a sweep.
    monkeypatch.setattr(Hydra, "get_mode", lambda *args, **kwargs: RunMode.RUN)
    main()


def report(folder: Path) -> dict[str, Any]:
    """The numbers of a run."""
    return json.loads((folder / "report.json").read_text())


def logged(folder: Path, phase: str, *names: str) -> dict[tuple[str, int], float]:
    """Logged values by name and step, of all processes of a run; every name that starts with one of ``names``."""
    rows: list[dict[str, str]] = []
    for path in sorted((folder / phase).glob("csv*/metrics.csv")):
        with open(path, newline="") as f:
            rows += csv.DictReader(f)
    return {
        (k, int(row["step"])): float(v)
        for row in rows
        for k, v in row.items()
        if v and any(k.startswith(name) for name in names)
    }


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's model and of its optimizers, by name."""
    saved = torch.load(checkpoint, weights_only=True)
    dense = {f"adam.{i}.{k}": v for i, s in saved["optimizer_states"][0]["state"].items() for k, v in s.items()}
    return saved["state_dict"] | saved["torchrec_fused_optimizer"] | dense


OTHER_RESAMPLE = (0.02, 0.1)
"""Relative and absolute: an end of an interval is that of one resample, and jumps with the last user it can pay for."""


def assert_same(
    a: Any, b: Any, rtol: float = 0.0, where: str = "report", ends: tuple[float, float] | None = None
) -> None:
    """Equal structure and numbers, ends of intervals to ``ends`` if given; NaN equals NaN."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], rtol, f"{where}.{key}", ends)
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, rtol, f"{where}[{i}]", ends)
    elif isinstance(a, float):
        is_end = re.search(r"(low|high)(\[\d+\])?$", where)
        rel, least = ends if ends and is_end else (rtol, rtol)
        assert a == pytest.approx(b, rel=rel, abs=least, nan_ok=True), where
    else:
        assert a == b, where


def assert_same_report(
    a: dict[str, Any], b: dict[str, Any], rtol: float, ends: tuple[float, float] | None = None
) -> None:
    """As :func:`assert_same` for reports of runs that differ in the last bits of their predictions.

    Which points of a curve are kept may then differ; its ends and everything computed from it do not.
    """
    outer = [
        [(c["method"], c["kind"], c["spend"][0], c["value"][0], c["spend"][-1], c["value"][-1]) for c in r["curves"]]
        for r in (a, b)
    ]
    assert_same([list(e) for e in outer[0]], [list(e) for e in outer[1]], rtol, "curves")
    assert_same({**a, "curves": []}, {**b, "curves": []}, rtol, ends=ends)


def small_data(**changes: Any) -> CampaignDataModule:
    """A campaign of 1,024 training rows in batches of 128, set up."""
    sizes = {"train_rows": 1024, "val_rows": 512, "test_rows": 512, "users": 100, "batch_size": 128}
    data = CampaignDataModule(**{**sizes, **changes})
    data.setup()
    return data


def small_module(data: RCTDataModule, **changes: Any) -> BudgetModule:
    """An untrained module of the data."""
    model = {"name": "tarnet", "embedding_dim": 4, "dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4}
    settings = {"model": model, "lr": 0.01, "embedding_lr": 0.05, "schedule": "cosine"}
    return BudgetModule(data.schema.to_dict(), data.statistics.to_dict(), **{**settings, **changes})


def small_trainer(folder: Path, callbacks: Sequence[L.Callback] = (), **changes: Any) -> L.Trainer:
    """One CPU process of the strategy, silent, two epochs."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "strategy": "torchrec",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
    }
    return L.Trainer(callbacks=list(callbacks), **{**settings, **changes})


class EpochCheckpoints(L.Callback):
    """Save ``<epoch>.ckpt`` as each epoch ends, counted from 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")
