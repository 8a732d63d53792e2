"""A campaign written as Parquet: whole, the same however it came about, and never mixed with anything else."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lightning_budget.campaign import SPLITS, Campaign, Exposures
from lightning_budget.campaign.writing import workers
from lightning_budget.campaign.writing.columns import columns_of
from lightning_budget.campaign.writing.dataset import DATASET
from lightning_budget.campaign.writing.folder import MANIFEST, parts_of
from lightning_budget.campaign.writing.job import ROOM, Simulation, simulate
from lightning_budget.config_schema import SimulateConfig
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.splits import SplitRule
from lightning_budget.errors import InputError
from lightning_budget.streaming.work import only_job
from scripts.simulate import campaign_of
from tests.forked import Forked

ROOT = Path(__file__).resolve().parents[1]
SMALL = Campaign(train_rows=2_500, val_rows=700, test_rows=1_000, users=300, partition_rows=1_000)
FILES = [
    *(f"split=train/part-00000{i}.parquet" for i in range(3)),
    "split=val/part-000000.parquet",
    "split=test/part-000000.parquet",
]


def job(output: Path, campaign: Campaign = SMALL, **more: Any) -> Simulation:
    return Simulation(campaign, output, shown=False, **more)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete simulation."""
    output = tmp_path_factory.mktemp("simulated") / "new" / "campaign"
    done = simulate(job(output))
    assert (done.rows, done.partitions, done.earlier) == (4_200, 5, 0)
    assert done.bytes == sum(p.stat().st_size for p in output.rglob("*.parquet"))
    return output


def test_the_folder_holds_the_campaign(folder: Path) -> None:
    assert set(contents(folder)) == {MANIFEST, DATASET, *FILES}
    data = pyarrow.dataset.dataset(str(folder), format="parquet", partitioning="hive")
    for split in SPLITS:
        found = data.to_table(filter=pyarrow.dataset.field("split") == split)
        tables = [columns_of(SMALL.exposures(split, i), SMALL, False) for i in range(SMALL.partitions(split))]
        assert found.drop_columns(["split"]).equals(pa.concat_tables(tables))


def test_columns_say_what_the_table_says() -> None:
    x, table = SMALL.exposures("val", 0), SMALL.partition("val", 0)
    found = columns_of(x, SMALL, oracle=True)
    assert found["user_id"].to_pylist() == table.user.tolist()
    assert found["treatment"].to_pylist() == [SMALL.schema.treatments[j] for j in table.treatment]
    for name in ("city", "tier", "device"):
        assert found[name].to_pylist() == (table.ids[name] - 1).tolist()  # type: ignore[operator]
    assert [len(v) for v in found["viewed"].to_pylist()] == np.diff(x.viewed.offsets).tolist()
    assert [v for viewed in found["viewed"].to_pylist() for v in viewed] == x.viewed.values.tolist()
    matrix = np.stack([found[name].to_numpy() for name in SMALL.schema.dense], 1)
    assert np.array_equal(matrix, table.dense.numpy())
    for name in ("value", "cost", "propensity"):
        assert np.array_equal(found[name].to_numpy(), getattr(table, name).numpy())
    for name in ("true_value", "true_cost"):
        matrix = np.stack([found[f"{name}_{j}"].to_numpy() for j in range(5)], 1)
        assert np.array_equal(matrix, getattr(table, name).numpy())
    assert set(found["day"].to_pylist()) == {10, 11}
    assert found.drop_columns([n for n in found.column_names if n.startswith("true_")]).equals(
        columns_of(x, SMALL, oracle=False)
    )


def test_the_config_names_columns_that_are_there(folder: Path) -> None:
    roles: Any = OmegaConf.to_container(OmegaConf.load(folder / DATASET))
    present = pyarrow.parquet.read_schema(folder / FILES[0]).names
    roles = {k: tuple(v) if isinstance(v, list) else v for k, v in roles.items()}
    known = {f.name for f in fields(TableColumns)}
    columns = TableColumns(**{k: v for k, v in roles.items() if k in known})
    named = [*columns.dense, *columns.categorical, *columns.lists, columns.treatment, columns.value]
    assert {*named, columns.cost, columns.propensity, columns.user, columns.time} == set(present)
    assert SplitRule(column=roles["split_column"], straddling=roles["straddling"]).by == "given"
    schema = SMALL.schema
    assert columns.arms == schema.treatments
    assert columns.dense == schema.dense
    assert columns.categorical + columns.lists == tuple(f.name for f in schema.sparse)
    assert columns.cost_per_arm == schema.known_cost


# The same however it came about


def test_several_processes_write_the_same(folder: Path, tmp_path: Path) -> None:
    simulate(job(tmp_path / "out", workers=3))
    assert contents(tmp_path / "out") == contents(folder)


def test_a_job_that_failed_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, write = tmp_path / "out", workers.write_columns
    written: list[Path] = []

    def until_the_third(table: pa.Table, path: Path) -> None:
        if len(written) == 2:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(table, path)

    monkeypatch.setattr(workers, "write_columns", until_the_third)
    with pytest.raises(InputError, match=r"cannot be written: No space left on device; .* goes on where it stopped"):
        simulate(job(output))
    assert set(contents(output)) == {MANIFEST, *FILES[:2]}
    before = [(output / f).stat().st_mtime_ns for f in FILES[:2]]
    # A kill leaves what was being written, too.
    (output / "split=val" / ".part-000000.parquet.17.tmp").write_bytes(b"half")
    (output / ROOM).mkdir()
    (output / ROOM / "lock").touch()
    monkeypatch.setattr(workers, "write_columns", write)
    assert simulate(job(output)).earlier == 2
    assert contents(output) == contents(folder)
    assert [(output / f).stat().st_mtime_ns for f in FILES[:2]] == before
    # What is complete is left alone.
    monkeypatch.setattr(workers, "write_columns", until_the_third)
    assert simulate(job(output)).earlier == 5
    # What lost a partition is complete no more.
    (output / FILES[3]).unlink()
    with pytest.raises(InputError):
        simulate(job(output))
    assert set(contents(output)) == {MANIFEST, *FILES} - {FILES[3]}


def test_without_its_last_partition_a_folder_has_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers, "write_columns", interrupted)
    with pytest.raises(KeyboardInterrupt):
        simulate(job(tmp_path))
    assert set(contents(tmp_path)) == {MANIFEST}


class Deadly(Campaign):
    """Its second partition kills the process."""

    def exposures(self, split: str, index: int) -> Exposures:
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().exposures(split, index)


def test_a_killed_process_is_told_in_a_line(tmp_path: Path) -> None:
    deadly = Deadly(**asdict(SMALL))
    with pytest.raises(InputError, match=r"one of 2 processes was killed \(out of memory\?\); .*fewer workers"):
        simulate(job(tmp_path, deadly, workers=2))
    assert DATASET not in contents(tmp_path)


# Nothing is mixed


@pytest.mark.parametrize(
    ("change", "oracle", "message"),
    [
        ({"seed": 1}, False, r"was begun with seed=0, not seed=1;"),
        ({"spend_tail": 2.5, "train_rows": 2_501}, False, r"train_rows=2500, spend_tail=null, not train_rows=2501, sp"),
        ({}, True, r"was begun with oracle=false, not oracle=true"),
    ],
)
def test_other_arguments_are_refused(folder: Path, change: dict[str, Any], oracle: bool, message: str) -> None:
    before = contents(folder)
    with pytest.raises(InputError, match=message):
        simulate(job(folder, replace(SMALL, **change), oracle=oracle))
    assert contents(folder) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds something else, such as 'thesis.tex'"):
        simulate(job(tmp_path))
    assert set(contents(tmp_path)) == {"thesis.tex"}


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=f"{MANIFEST} is damaged"):
        simulate(job(tmp_path))


def test_two_jobs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        only_job(tmp_path / ROOM, tmp_path),
        pytest.raises(InputError, match=r"is being written by process \d+ .*one job at a time"),
    ):
        simulate(job(tmp_path))
    assert simulate(job(tmp_path)).rows == 4_200


def test_a_folder_that_cannot_be_made_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/out' cannot be written: Not a directory"):
        simulate(job(tmp_path / "file" / "out"))


def test_what_does_not_fit_on_the_disk_is_refused_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    large = replace(SMALL, train_rows=10**9, partition_rows=10**6)
    with monkeypatch.context() as none_is_written:
        none_is_written.delattr(workers, "write_columns")
        with pytest.raises(InputError, match=r"31.7 GiB are to be written, 3.0 are free; allowed: up to 94,"):
            simulate(job(tmp_path / "large", large))
    # A free disk of that size is enough for what is left of a smaller one.
    assert simulate(job(tmp_path / "small")).rows == 4_200


def test_a_billion_rows_are_four_thousand_partitions_of_a_stated_size() -> None:
    campaign = Campaign(train_rows=8 * 10**8, val_rows=10**8, test_rows=10**8, users=10**8)
    parts = parts_of(campaign, Path("/out"))
    assert sum(p.rows for p in parts) == 10**9
    assert max(p.rows for p in parts) == campaign.partition_rows
    assert len({p.path for p in parts}) == len(parts) == 3_816
    assert [p.path for p in parts if p.split == "train"] == sorted(p.path for p in parts if p.split == "train")


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers=0"):
        simulate(job(tmp_path, workers=0))


# The command line


def configured(*overrides: str) -> Campaign:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return campaign_of(compose("simulate", ["output=x", *overrides]))


def test_the_config_is_the_campaigns_defaults_in_another_size() -> None:
    counts = {"train_rows": 800_000, "val_rows": 100_000, "test_rows": 100_000, "users": 100_000}
    assert configured() == replace(Campaign(), **counts, propensity="uniform")
    given = {"repeat": 2.0, "zero_inflation": 0.1, "spend_tail": 3.0, "drift_base": 0.1, "drift_sensitivity": 0.2}
    given |= {"weekly_base": 0.3, "weekly_sensitivity": 0.4, "propensity": "targeted", "propensity_floor": 0.01}
    given |= {"seed": 7, "newcomers": 0.5, "purchase_logit": -2.0, "spend_sigma": 0.5, "train_days": 3, "val_days": 4}
    given |= {"test_days": 5, "users": 50, "partition_rows": 100}
    found = configured("rows=1e3", "split=[0.5,0.3,0.2]", *(f"{k}={v}" for k, v in given.items()))
    shares = {"train_rows": 500, "val_rows": 300, "test_rows": 200}
    assert found == Campaign(**shares, **given)  # type: ignore[arg-type]
    assert {f.name for f in fields(Campaign)} == {*shares, *given, "face_values", "uniform"}
    assert {f.name for f in fields(SimulateConfig)} == {
        *given,
        "face_values",
        "output",
        "rows",
        "split",
        "oracle",
        "workers",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rows=10.5"], "rows=10.5; allowed: a whole number"),
        (["rows=3"], "rows=3; allowed: at least one row in every split"),
        (["users=1e-3"], "users=0.001; allowed: a whole number"),
        (["split=[0.5,0.5]"], r"split=\[0.5, 0.5\]; allowed: three shares"),
        (["split=[1,0,0]"], "split="),
    ],
)
def test_sizes_that_are_none(overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        configured(*overrides)


def test_the_script(tmp_path: Path) -> None:
    options = ["rows=4e3", "users=100", "workers=2", "oracle=true", "partition_rows=1000"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Forked([ROOT / "scripts" / "simulate.py", "output=out", *options], env, tmp_path) as running:
        printed, _ = running.communicate(60)
    assert running.returncode == 0, printed
    assert "Simulating: 100%" in printed
    assert "4,000 rows (train 3,200, val 400, test 400) in 6 partitions" in printed
    assert f"'hydra.searchpath=[{tmp_path}/out/_config]' data=simulated data.path={tmp_path}/out\n" in printed
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 6
