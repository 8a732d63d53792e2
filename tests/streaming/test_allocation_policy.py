"""`scripts/allocate.py` leaves the policy that serves the same allocation to one user at a time."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch
from streams import ROOT, Small, arms, contents, free_port

from lightning_budget.allocation import Budget, PricePolicy
from lightning_budget.serving import load_policy
from lightning_budget.streaming import job
from lightning_budget.streaming.source import open_source
from scripts import allocate
from tests.forked import Forked

NAMES = ("none", "a", "b", "c")


@pytest.fixture
def command(folder: Path, users: Small, tmp_path: Path) -> list[str]:
    return [
        f"budget={users.budget}",
        f"input={folder}",
        f"output={tmp_path / 'out'}",
        f"treatments=[{','.join(NAMES)}]",
    ]


def call(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["allocate.py", *command])
    allocate.main()


def check(path: Path, output: Path, users: Small, given: Path) -> None:
    """The policy's treatments are the output's for all but the few users of the fill."""
    policy = load_policy(path)
    assert isinstance(policy, PricePolicy)
    expected = users.in_memory()
    assert policy.multiplier == expected.multiplier
    assert policy.treatments == NAMES
    assert policy.origin is not None
    assert policy.origin.budget == Budget(users.budget, False, 6000)
    assert (policy.origin.data.name, policy.origin.data.rows) == (str(given), 6000)
    assert policy.origin.data.fingerprint == open_source(given).fingerprint()
    assert policy.origin.checkpoint is None
    found = arms(output)
    served = policy(users.value, users.cost)
    other = served != torch.tensor([found[u] for u in users.ids.tolist()])
    assert torch.equal(served != expected.assignment, other)
    assert 0 < int(other.sum()) < 60


def test_in_a_folder_where_readers_do_not_see_it(
    command: list[str],
    users: Small,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call(command, monkeypatch)
    output = tmp_path / "out"
    check(output / "_policy.json", output, users, folder)
    assert capsys.readouterr().out.splitlines()[-1] == f"Policy: {output / '_policy.json'}"
    assert pyarrow.dataset.dataset(output).count_rows() == 6000
    # An earlier output is replaced with its policy.
    call([*command, "budget=1"], monkeypatch)
    policy = load_policy(output / "_policy.json")
    assert isinstance(policy, PricePolicy)
    assert policy.origin is not None
    assert policy.origin.budget.amount == 1
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_beside_a_file(
    command: list[str],
    users: Small,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given, output, policy = (tmp_path / name for name in ("in.parquet", "out.parquet", "out.policy.json"))
    pyarrow.parquet.write_table(users.table(), given)
    command = [*command, f"input={given}", f"output={output}"]
    call(command, monkeypatch)
    check(policy, output, users, given)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "in.parquet", "out.parquet", "out.policy.json"}
    before = contents(tmp_path)
    call(command, monkeypatch)
    assert contents(tmp_path) == before
    policy.write_text("mine")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(command, monkeypatch)
    assert caught.value.code == 2
    assert "stands where the policy would, and is none" in capsys.readouterr().err
    assert policy.read_text() == "mine"


def test_of_a_job_that_went_on(
    command: list[str], users: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "publish", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call(command, monkeypatch)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(job, "write_partition", lambda *_: pytest.fail("written again"))
    call(command, monkeypatch)
    check(tmp_path / "out" / "_policy.json", tmp_path / "out", users, folder)


def test_of_several_processes(
    command: list[str], users: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    started = []
    for rank in range(2):
        place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in place.items()}}
        started.append(Forked([ROOT / "scripts" / "allocate.py", *command], env, tmp_path))
    texts = [p.communicate(timeout=60)[0] for p in started]
    assert [p.returncode for p in started] == [0, 0], texts
    assert [text.count("Policy: ") for text in texts] == [1, 0]
    several = contents(tmp_path / "out")
    check(tmp_path / "out" / "_policy.json", tmp_path / "out", users, folder)
    shutil.rmtree(tmp_path / "out")
    call(command, monkeypatch)
    alone = contents(tmp_path / "out")
    assert alone["_policy.json"] == several["_policy.json"]
    assert alone.keys() == several.keys()


def test_a_fingerprint_is_that_of_what_is_in_the_files(users: Small, tmp_path: Path) -> None:
    users.write(tmp_path / "a", 3)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    found = open_source(tmp_path / "a").fingerprint()
    assert open_source(tmp_path / "copy").fingerprint() == found
    dearer = Small(users.value, users.cost.clone(), users.ids)
    dearer.cost[-1] = 100
    dearer.write(tmp_path / "b", 3)
    assert open_source(tmp_path / "b").fingerprint() != found
    shutil.move(tmp_path / "copy" / "day=0" / "part-0.parquet", tmp_path / "copy" / "day=0" / "part-9.parquet")
    assert open_source(tmp_path / "copy").fingerprint() != found
