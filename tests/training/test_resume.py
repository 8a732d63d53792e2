"""Killed without warning and resumed, a run ends where it would have ended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from training_runs import (
    OTHER_RESAMPLE,
    PHASES,
    SMALL,
    assert_same,
    assert_same_report,
    kill_at,
    logged,
    report,
    run,
    weights,
)


def assert_same_run(folder: Path, expected: Path, rtol: float = 0.0) -> None:
    if rtol:
        assert_same_report(report(folder), report(expected), rtol, OTHER_RESAMPLE)
    else:
        assert_same(report(folder), report(expected))
    for phase in PHASES:
        for name in ("best.ckpt", "last.ckpt"):
            mine, theirs = weights(folder / phase / name), weights(expected / phase / name)
            assert mine.keys() == theirs.keys()
            for key, tensor in theirs.items():
                torch.testing.assert_close(mine[key], tensor, rtol=rtol, atol=rtol, equal_nan=True, msg=key)
    assert files_but_logs(folder) == files_but_logs(expected)


def files_but_logs(folder: Path) -> set[Path]:
    return {name for p in folder.rglob("*") if "csv" not in str(name := p.relative_to(folder))}


def test_killed_in_the_first_phase_resumed_by_its_folder(one_process: Path, tmp_path: Path) -> None:
    killed = tmp_path / "run"
    kill_at("two_stage epoch 2/", *SMALL, f"run_dir={killed}", cwd=tmp_path)
    assert (killed / "two_stage" / "last.ckpt").is_file()
    assert not (killed / "two_stage" / "done.json").exists()
    output = run("train.py", f"ckpt_path={killed}", cwd=tmp_path)
    assert "two_stage epoch 1/" not in output
    assert "two_stage epoch 4/" in output
    assert_same_run(killed, one_process)
    # What was logged before the kill is still there.
    for phase in PHASES:
        assert logged(killed, phase, "train/loss_step") == logged(one_process, phase, "train/loss_step")


def test_killed_in_the_second_phase_moved_and_resumed_by_its_checkpoint(one_process: Path, tmp_path: Path) -> None:
    killed, moved = tmp_path / "run", tmp_path / "elsewhere" / "run"
    # After its best epoch, the third: what was best before must be remembered, wherever the folder lies.
    kill_at("end_to_end epoch 4/", *SMALL, f"run_dir={killed}", cwd=tmp_path)
    assert (killed / "two_stage" / "done.json").is_file()
    moved.parent.mkdir()
    shutil.move(killed, moved)
    output = run("train.py", f"ckpt_path={moved / 'end_to_end' / 'last.ckpt'}", cwd=tmp_path)
    assert "two_stage epoch" not in output
    assert "end_to_end epoch 3/" not in output
    assert not killed.exists()
    assert_same_run(moved, one_process)


@pytest.mark.slow
def test_two_processes_killed_and_resumed_with_one(one_process: Path, tmp_path: Path) -> None:
    killed = tmp_path / "run"
    kill_at("end_to_end epoch 2/", *SMALL, "trainer.devices=2", f"run_dir={killed}", cwd=tmp_path)
    run("train.py", f"ckpt_path={killed}", "trainer.devices=1", cwd=tmp_path)
    assert_same_run(killed, one_process, rtol=1e-4)


def test_a_finished_run_repeats_its_report_without_training(
    one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(one_process, copy)
    (copy / "report.json").unlink()
    output = run("train.py", f"ckpt_path={copy}", cwd=tmp_path)
    assert "epoch" not in output.replace("Epoch", "")
    assert_same_run(copy, one_process)
