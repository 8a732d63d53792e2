"""One thread per process, no network, and no GPU test where there is no GPU."""

from __future__ import annotations

import os

# Before torch is imported; inherited by every process that a test starts.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

from tests import forked

# Before anything starts the server of forked processes.
forked.context()
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line tells its child processes must not reach the next test."""
    for name in ("LIGHTNING_BUDGET_RUN_DIR", "LIGHTNING_BUDGET_TRACEBACK", "HYDRA_FULL_ERROR"):
        # Set, then deleted: the undoing removes what a test may have put there.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
