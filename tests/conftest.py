"""One thread per process, no network, and no GPU test where there is no GPU."""

from __future__ import annotations

import gc
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


LONG = (
    *("test_search.py", "test_sharding_equivalence.py", "test_allocate.py", "test_resume.py", "test_price_policy.py"),
    *("test_scripts_bad_input.py", "test_shared_search.py", "test_two_processes.py", "test_settled.py", "test_cli.py"),
    *("test_readme.py", "test_scripts_hillstrom.py", "test_scripts_evaluate_allocate.py", "test_watchdog.py"),
)
"""Files of most work. They go first, so that no worker waits for another at the end, and by turns: of two workers one
compiles the allocator's kernels, which all later tests find compiled, while the other one trains.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """Leave what is imported to itself: every full collection would look through it, for a quarter of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line tells its child processes must not reach the next test."""
    for name in ("LIGHTNING_BUDGET_RUN_DIR", "LIGHTNING_BUDGET_TRACEBACK", "HYDRA_FULL_ERROR"):
        # Set, then deleted: the undoing removes what a test may have put there.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
