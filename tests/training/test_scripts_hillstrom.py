"""The real e-mail trial, from the published file to the report, by the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from training_runs import report, run


def test_trains_on_the_published_file(tmp_path: Path) -> None:
    root = os.environ.get("LIGHTNING_BUDGET_DATA") or Path(__file__).parents[3] / "shared" / "data"
    path = Path(root) / "hillstrom" / "hillstrom.parquet"
    if not path.exists():
        pytest.skip(f"needs {path} (set LIGHTNING_BUDGET_DATA to the folder that holds hillstrom/)")
    folder = tmp_path / "run"
    few = ("trainer.max_epochs=2", "objective.warm_start_epochs=1", "data.batch_size=4096", "resamples=20")
    settings = (*few, "logger=csv")
    output = run("train.py", "data=hillstrom", f"data.path={path}", *settings, f"run_dir={folder}", cwd=tmp_path)
    found = report(folder)
    assert "end_to_end epoch 2/2" in output
    assert found["has_oracle"] is False
    assert "true" not in {curve["kind"] for curve in found["curves"]}
    assert "oracle" not in json.dumps(found).replace("has_oracle", "")
    assert (folder / "curves.png").stat().st_size > 0
    assert (folder / "best.ckpt").is_file()
