"""Streaming in processes of its own: killed and begun again, and two that share an epoch."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from streamed import module, write_folder

from tests.forked import Forked

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def start(folder: Path, out: Path, rank: int = 0, ranks: int = 1, kill_after: int = 0) -> Forked:
    path = os.pathsep.join([str(ROOT), str(HERE)])
    return Forked(
        [HERE / "stream_process.py", folder, out, *map(str, (rank, ranks, kill_after))],
        {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def diary(out: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads(out.with_name(f"{out.name}.{rank}.json").read_text())


@pytest.fixture
def folder(tmp_path: Path, trial: pa.Table) -> Path:
    return write_folder(trial, tmp_path / "d")


def test_killed_it_goes_on_where_it_was(tmp_path: Path, folder: Path) -> None:
    for kill_after, code in ((3, -signal.SIGKILL), (2, -signal.SIGKILL), (0, 0)):
        with start(folder, tmp_path / "killed", kill_after=kill_after) as process:
            output, _ = process.communicate(60)
        assert process.returncode == code, output
    data = module(folder)
    data.setup()
    loader = data.train_dataloader()
    loader.sampler.set_epoch(1)
    assert diary(tmp_path / "killed")["rows"] == [b.row.tolist() for b in loader]


def test_two_ranks_share_an_epoch(tmp_path: Path, folder: Path) -> None:
    """They rank users and scan together too, and find what one does."""
    running = [start(folder, tmp_path / "two", rank, 2) for rank in (0, 1)]
    for process in running:
        with process:
            output, _ = process.communicate(60)
        assert process.returncode == 0, output
    found = [diary(tmp_path / "two", rank) for rank in (0, 1)]
    data = module(folder, sample_rows=60, stratify=True)
    data.setup()
    for one in found:
        assert one["statistics"] == data.statistics.to_dict()
        assert one["sample"] == data.train.user.tolist()
    rows = [r for one in found for batch in one["rows"] for r in batch]
    assert len(set(rows)) == len(rows) == data.rows["train"] // 2 * 2
    assert [len(b) for b in found[0]["rows"]] == [len(b) for b in found[1]["rows"]]
    assert found[0]["state"] == found[1]["state"]
