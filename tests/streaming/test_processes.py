"""Several processes give what one gives, and a job that was killed anywhere ends as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from streams import Small, arms, contents, expected_arms, processes, run

from lightning_budget.streaming import job, source
from lightning_budget.streaming.work import work_folder

pytestmark = pytest.mark.usefixtures("little")


@pytest.mark.parametrize("size", [2, 4])
def test_as_one_process(size: int, users: Small, folder: Path, tmp_path: Path) -> None:
    ties = Small.draw(5000, 3, grid=True)
    ties.write(tmp_path / "ties", 2)
    (tmp_path / "short").mkdir()
    whole = (folder / "day=0" / "part-2.parquet").read_bytes()
    for name, data in (("a", whole), ("b", whole[:-100])):
        (tmp_path / "short" / f"{name}.parquet").write_bytes(data)
    twice = users.select(torch.arange(4001) % 4000)
    twice.write(tmp_path / "twice", 2)
    several = {name: tmp_path / "out" / name for name in ("many", "ties", "short", "twice", "poor")}
    inputs = {"many": folder, "poor": folder}
    jobs = [
        {
            "input": str(inputs.get(name, tmp_path / name)),
            "output": str(output),
            "budget": {"ties": ties.budget, "poor": 1e-9}.get(name, users.budget),
        }
        for name, output in several.items()
    ]
    done = processes(size, jobs, tmp_path)
    assert [code for code, _ in done] == [0] * size, done
    assert arms(several["many"]) == expected_arms(users)
    assert arms(several["ties"]) == expected_arms(ties)
    run(folder, tmp_path / "alone", users.budget)
    assert contents(several["many"]) == contents(tmp_path / "alone")
    for _, text in done:
        told = text.splitlines()
        assert len(told) == 2, text
        assert "b.parquet" in told[0]
        assert "cannot be read" in told[0]
        assert "stands in" in told[1]
    assert sum(text.count("InputError: ") for _, text in done) == 2
    # The least feasible spend is 0: a tiny budget is no error.
    assert set(arms(several["poor"]).values()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("place", ["scan", "writing", "publishing"])
def test_killed_and_run_again(
    size: int, place: str, users: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == 2 and place != "scan":
        pytest.skip("as in one process")
    output = tmp_path / "out"
    described: dict[str, Any] = {"input": str(folder), "output": str(output), "budget": users.budget, "die": place}
    if size == 1:
        assert [code for code, _ in processes(1, [described], tmp_path)] == [-9]
    else:
        # In the end the other rank fails for want of the first, as torchrun would have it.
        assert -9 in [code for code, _ in processes(2, [described], tmp_path)]
    assert not output.exists()
    spools = {p.name: p.stat().st_mtime_ns for p in (work_folder(output) / "spools").glob("*.spool")}
    assert spools
    written = set((work_folder(output) / "written").glob("*"))
    scanned, made = _count(monkeypatch, "scan_piece"), _count(monkeypatch, "write_partition")
    run(folder, output, users.budget)
    pieces = len(source.open_source(folder).pieces)
    assert len(scanned) == pieces - len(spools)
    assert len(made) == 5 - len(written)
    if place == "scan":
        assert 0 < len(scanned) < pieces
    else:
        assert not scanned
        assert 0 < len(made) < 5 if place == "writing" else not made
    run(folder, tmp_path / "again", users.budget)
    assert contents(output) == contents(tmp_path / "again")
    assert not work_folder(output).exists()


def test_what_changed_after_a_kill_is_scanned_again(
    users: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    jobs = [{"input": str(folder), "output": str(output), "budget": users.budget, "die": "writing"}]
    processes(1, jobs, tmp_path)
    sizes = [len([p for p in source.open_source(folder).pieces if p.file == i]) for i in range(5)]
    changed = Small(users.value + 0.25, users.cost, users.ids)
    changed.write(tmp_path / "other", 5)
    source_file, index = folder / "day=1" / "part-1.parquet", 3
    source_file.write_bytes((tmp_path / "other" / "day=1" / "part-1.parquet").read_bytes())
    assert source.open_source(folder).files[index].path == str(source_file)
    scanned, made = _count(monkeypatch, "scan_piece"), _count(monkeypatch, "write_partition")
    run(folder, output, users.budget)
    assert len(scanned) == sizes[index]
    assert len(made) == 5
    run(folder, tmp_path / "again", users.budget)
    assert contents(output) == contents(tmp_path / "again")


def test_another_budget_after_a_kill(users: Small, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    jobs = [{"input": str(folder), "output": str(output), "budget": users.budget, "die": "writing"}]
    processes(1, jobs, tmp_path)
    run(folder, output, 0.98 * users.budget)
    assert arms(output) == expected_arms(users, 0.98 * users.budget)


def _count(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    calls: list[int] = []
    original = getattr(job, name)
    monkeypatch.setattr(job, name, lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    return calls
