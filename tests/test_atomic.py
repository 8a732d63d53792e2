from __future__ import annotations

import os
from pathlib import Path

import pytest

from lightning_budget.atomic import atomic_path


def test_replaces_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "table.parquet"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".parquet"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_writer_may_replace_the_temporary_itself(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "out.bin") as temporary:
        other = tmp_path / "other"
        other.write_bytes(b"\x01")
        os.replace(other, temporary)
    assert (tmp_path / "out.bin").read_bytes() == b"\x01"


def test_permissions_are_kept_or_ordinary(tmp_path: Path) -> None:
    kept, ordinary, reference = tmp_path / "kept", tmp_path / "ordinary", tmp_path / "reference"
    kept.write_text("old")
    kept.chmod(0o640)
    reference.write_text("made by open()")
    for target in (kept, ordinary):
        with atomic_path(target) as temporary:
            temporary.write_text("new")
    assert kept.stat().st_mode & 0o777 == 0o640
    assert ordinary.stat().st_mode == reference.stat().st_mode


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "nowhere" / "out"):
        pass
    assert not (tmp_path / "nowhere").exists()
