"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from lightning_budget.errors import InputError
from lightning_budget.published.catalogue import GENERATED, PUBLISHED
from lightning_budget.published.description import Published, Rate
from scripts.prepare_data import run

ROOT = Path(__file__).parents[2]
Save = Callable[..., Path]


@pytest.fixture
def toy_on_the_list(published_toy: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "toy", published_toy)


def test_without_a_name_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in [*PUBLISHED, *GENERATED])


@pytest.mark.parametrize("name", [*PUBLISHED, "criteo_mt7"])
def test_without_a_file_it_says_where_to_get_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name]) == 0
    out = " ".join(capsys.readouterr().out.split())
    data = PUBLISHED["criteo" if name == "criteo_mt7" else name]
    for text in (data.where, data.licence, data.allows, data.citation, data.unknown, "--from PATH"):
        assert text in out
    for file in data.files:
        assert file.name in out
        assert (file.sha256 or "") in out


@pytest.mark.usefixtures("toy_on_the_list")
def test_a_sound_file(toy_table: pa.Table, save: Save, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["toy", "--from", str(save(toy_table, "source.csv"))]) == 0
    assert pyarrow.parquet.read_table(tmp_path / "toy.parquet").equals(toy_table)
    out, err = capsys.readouterr()
    assert "2,000 rows" in out
    assert "shares of the arms" in out
    assert err == ""
    with pytest.raises(InputError, match="is there already"):
        run(["toy", "--from", str(tmp_path / "source.csv")])
    assert run(["toy", "--from", str(tmp_path / "source.csv"), "--overwrite"]) == 0
    with pytest.raises(InputError, match="is the source itself"):
        run(["toy", "--from", str(tmp_path / "toy.parquet"), "--overwrite"])
    with pytest.raises(InputError, match=r"a \.parquet file"):
        run(["toy", "--from", str(tmp_path / "source.csv"), "--to", str(tmp_path / "toy.csv")])


def test_a_failed_check(
    published_toy: Published,
    toy_table: pa.Table,
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(PUBLISHED, "toy", replace(published_toy, rates=(Rate("visits", 0.5, 2), Rate("buys", 0.1, 2))))
    source = str(save(toy_table, "source.csv"))
    assert run(["toy", "--from", source]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out
    assert err == ("error: not as published: mean of visits; nothing written; fix: get the file anew, or --force\n")
    assert not (tmp_path / "toy.parquet").exists()
    assert run(["toy", "--from", source, "--force"]) == 0
    assert capsys.readouterr().err == "warning: not as published: mean of visits; written all the same\n"
    assert len(pyarrow.parquet.read_table(tmp_path / "toy.parquet")) == 2000


def test_a_generated_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["campaign_mt7", "--to", str(tmp_path / "deep" / "c.parquet"), "--rows", "200"]) == 0
    assert "200 rows" in capsys.readouterr().out
    assert pyarrow.parquet.read_metadata(tmp_path / "deep" / "c.parquet").num_rows == 200


def test_the_process_prints_one_line_and_exits_with_2(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for arguments, told in (
        (["MT-LIF"], "error: no data set 'MT-LIF'; allowed: criteo, "),
        (["criteo", "--from", str(tmp_path / "no.csv.gz")], f"error: {tmp_path / 'no.csv.gz'}: no such file; "),
    ):
        command = [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(told)
        assert done.stderr.count("\n") == 1
