"""Runs that several tests look at, trained once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_runs import SMALL, run


@pytest.fixture(scope="session")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of an uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    run("train.py", *SMALL, f"run_dir={folder}", cwd=folder.parent)
    return folder


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the same run in two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run("train.py", *SMALL, "trainer.devices=2", f"run_dir={folder}", cwd=folder.parent)
    return folder


@pytest.fixture(autouse=True)
def _library_remarks() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
