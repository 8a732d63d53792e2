"""Runs that several tests look at, trained once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from training_runs import SMALL, run


def _trained(name: str, factory: pytest.TempPathFactory, *overrides: str) -> Path:
    """Folder of a run that all workers share: the first who asks trains it, nobody may write to it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name / "run"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.with_name("lock")):
        if not (folder / "report.json").exists():
            run("train.py", *SMALL, *overrides, f"run_dir={folder}", cwd=folder.parent)
    return folder


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run in one process."""
    return _trained("one", tmp_path_factory)


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the same run in two processes."""
    return _trained("two", tmp_path_factory, "trainer.devices=2")


@pytest.fixture(autouse=True)
def _library_remarks() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
