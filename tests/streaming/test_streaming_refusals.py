"""What is amiss is told in one line, and nothing is half-written."""

from __future__ import annotations

import errno
import fcntl
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from streams import Small, arms, contents, expected_arms, run

from lightning_budget.errors import InputError
from lightning_budget.streaming import duplicates, job, scan, spool, work
from lightning_budget.streaming.work import work_folder

pytestmark = pytest.mark.usefixtures("little")


@pytest.fixture
def refused(folder: Path, users: Small, tmp_path: Path) -> Callable[..., str]:
    """The one line with which a job is refused; the output of yesterday stays, and nothing else appears."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "_certificate.json").write_text("{}")
    (output / "yesterday.parquet").write_bytes(b"yesterday's")

    def refuse(**changes: Any) -> str:
        before = contents(output)
        with pytest.raises(InputError) as caught:
            run(folder, output, changes.pop("budget", users.budget), **changes)
        assert contents(output) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pyarrow.parquet.write_table(change(pyarrow.parquet.ParquetFile(path).read()), path, row_group_size=300)


def with_number(column: str, row: int, x: float | None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        numbers = table[column].to_pylist()
        numbers[row] = x
        return table.set_column(table.schema.get_field_index(column), column, pa.array(numbers, pa.float32()))

    return change


@pytest.mark.parametrize("column", ["value_3", "cost_0"])
@pytest.mark.parametrize(("x", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (None, "nan or null")])
def test_a_number_that_is_none(
    refused: Callable[..., str], folder: Path, column: str, x: float | None, shown: str
) -> None:
    path = folder / "day=0" / "part-4.parquet"
    rows = pyarrow.parquet.read_metadata(path).num_rows
    rewrite(path, with_number(column, rows - 5, x))
    name, arm = column.split("_")
    assert f"{path}: row {rows - 5}: {name} of treatment {arm} is {shown}" in refused()


def test_negative_costs(refused: Callable[..., str], users: Small, folder: Path, tmp_path: Path) -> None:
    path = folder / "day=0" / "part-2.parquet"
    rewrite(path, with_number("cost_1", 700, -0.5))
    error = refused(allow_negative_cost=False)
    assert f"{path}: row 700: cost of treatment 1 is -0.5" in error
    assert "allow_negative_cost=true" in error
    run(folder, tmp_path / "allowed", users.budget)
    assert len(arms(tmp_path / "allowed")) == 6000


def test_columns(refused: Callable[..., str], folder: Path) -> None:
    assert "no column 'valu'; allowed: user_id, value_0" in refused(value_columns=["valu"])
    assert "did you mean 'value_" in refused(value_columns=["valu"])
    assert "as many of each" in refused(value_columns=["value_0", "value_1"])
    assert "treatments=['a']" in refused(treatments=["a"])
    first = folder / "day=0" / "part-0.parquet"
    later = folder / "day=1" / "part-1.parquet"
    saved = later.read_bytes()
    rewrite(later, lambda t: t.drop_columns(["cost_2"]))
    assert f"{later}: no column 'cost_2'" in refused()
    later.write_bytes(saved)
    rewrite(later, lambda t: t.set_column(0, "user_id", t["user_id"].cast(pa.string())))
    assert f"{later}: column 'user_id' has type string; allowed: int64" in refused()
    rewrite(first, lambda t: t.drop_columns(["value_1"]))
    assert "no column 'value_1'" in refused()


def test_damaged_and_missing_partitions(refused: Callable[..., str], users: Small, folder: Path) -> None:
    later = folder / "day=1" / "part-3.parquet"
    whole = later.read_bytes()
    later.write_bytes(whole[:-20])
    assert re.search(r"part-3.parquet cannot be read: .*; fix: write the partition again", refused())
    # The footer is whole, a page is not.
    later.write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    assert "part-3.parquet cannot be read" in refused()
    later.write_bytes(whole)
    collected = []
    for path in sorted(folder.rglob("*.parquet")):
        footer = pyarrow.parquet.read_metadata(path)
        footer.set_file_path(str(path.relative_to(folder)))
        collected.append(footer)
    pyarrow.parquet.write_metadata(users.table().schema, folder / "_metadata", collected)
    later.unlink()
    assert "partition 'day=1/part-3.parquet' is missing (1 of 5 listed in _metadata)" in refused()


def test_no_input(users: Small, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "nothing", "no such file"), (tmp_path / "empty", "no .parquet file")):
        with pytest.raises(InputError, match=message):
            run(path, tmp_path / "new" / "out", 1.0)
    pyarrow.parquet.write_table(users.table().slice(0, 0), tmp_path / "empty" / "a.parquet")
    with pytest.raises(InputError, match="has no rows"):
        run(tmp_path / "empty", tmp_path / "new" / "out", 1.0)
    assert {p.name for p in tmp_path.iterdir()} == {"empty"}


def test_a_budget_below_the_least_spend(users: Small, tmp_path: Path) -> None:
    dear = Small(users.value, users.cost + 1, users.ids)
    dear.write(tmp_path / "in", 3)
    with pytest.raises(InputError, match=r"budget=5999\.0 in total; allowed: at least 6000\.0, the least feasible"):
        run(tmp_path / "in", tmp_path / "out", 5999.0)
    assert not (tmp_path / "out").exists()
    run(tmp_path / "in", tmp_path / "out", 6000.0)
    assert arms(tmp_path / "out") == expected_arms(dear, 6000.0)


@pytest.mark.parametrize("at_once", [1 << 22, 500])
@pytest.mark.parametrize("sort", [True, False])
def test_a_user_in_two_partitions(
    users: Small, tmp_path: Path, sort: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "SORTED_AT_ONCE", at_once)
    ids = users.ids.sort().values if sort else users.ids.clone()
    ids[5555] = ids[17]
    twice = Small(users.value, users.cost, ids)
    twice.write(tmp_path / "in", 2)
    with pytest.raises(InputError) as caught:
        run(tmp_path / "in", tmp_path / "out", users.budget)
    assert f"user {ids[17]} stands in {tmp_path / 'in' / 'part-0.parquet'} row 17 and " in str(caught.value)
    assert "check_duplicates=false" in str(caught.value)
    result = run(tmp_path / "in", tmp_path / "out", users.budget, check_duplicates=False)
    assert result.certificate["spend"] <= users.budget
    assert result.certificate["users"] == 6000


def test_ids_that_grow_need_no_second_look(users: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "check_unique", lambda *_: pytest.fail("looked again"))
    Small(users.value, users.cost, torch.arange(6000)).write(tmp_path / "in", 5)
    # Partitions alternate between two folders, so that ranges do not come in the order of the files.
    run(tmp_path / "in", tmp_path / "out", users.budget)


def test_users_without_a_name(refused: Callable[..., str], folder: Path) -> None:
    later = folder / "day=1" / "part-1.parquet"
    nulls = lambda t: t.set_column(0, "user_id", pa.array([None, *t["user_id"].to_pylist()[1:]], pa.int64()))  # noqa: E731
    rewrite(later, nulls)
    assert f"{later}: column 'user_id' names no user in 1 rows" in refused()


@pytest.mark.parametrize("where", ["sample", "scan", "check", "write", "policy"])
def test_a_full_disk(
    where: str,
    refused: Callable[..., str],
    users: Small,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def raise_full(*_: Any, **__: Any) -> None:
        raise full

    with monkeypatch.context() as patch:
        changes: dict[str, Any] = {}
        if where == "sample":
            patch.setattr(work, "write_state", raise_full)
        elif where == "check":
            patch.setattr(duplicates.np, "save", raise_full)
        elif where == "policy":
            changes["save_policy"] = raise_full
        elif where == "scan":
            add = spool.SpoolWriter.add

            def failing(self: spool.SpoolWriter, *args: Any) -> None:
                add(self, *args)
                if len(list((work_folder(tmp_path / "out") / "spools").glob("*.spool"))) >= 3:
                    raise full

            patch.setattr(scan.SpoolWriter, "add", failing)
        else:
            patch.setattr(pyarrow.parquet.ParquetWriter, "write_table", raise_full)
        assert "cannot be written: No space left on device" in refused(**changes)
    left = work_folder(tmp_path / "out")
    assert not list(left.rglob("*.part"))
    assert not list(left.rglob("*.tmp*"))
    run(folder, tmp_path / "out", users.budget)
    assert arms(tmp_path / "out") == expected_arms(users)
    assert not left.exists()


def test_two_jobs_with_one_output(refused: Callable[..., str], users: Small, folder: Path, tmp_path: Path) -> None:
    left = work_folder(tmp_path / "out")
    left.mkdir()
    with open(left / "lock", "w+") as lock:
        lock.write("process 17 on a machine")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = refused()
    assert "is being written by process 17 on a machine; allowed: one job at a time" in error
    # Its process is gone: the lock is there, and nobody holds it.
    run(folder, tmp_path / "out", users.budget)
    assert not left.exists()


@pytest.mark.parametrize("change", ["rewritten", "removed"])
def test_an_input_that_changes_meanwhile(
    refused: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = folder / "day=1" / "part-3.parquet"
    decide = job.decide

    def meanwhile(*args: Any) -> Any:
        if change == "rewritten":
            rewrite(path, lambda t: t)
        else:
            path.unlink()
        return decide(*args)

    monkeypatch.setattr(job, "decide", meanwhile)
    assert f"{path} was changed or removed while it was being read" in refused()


def test_outputs_that_would_mix(users: Small, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    before = contents(tmp_path)
    for output in (folder / "out", folder, tmp_path, other):
        with pytest.raises(InputError, match="output="):
            run(folder, output, users.budget)
    assert contents(tmp_path) == before
    shutil.rmtree(other)
