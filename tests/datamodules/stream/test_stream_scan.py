"""What a scan finds is what reading the whole file finds, on any number of processes and in any pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from streamed import assert_same_batch, assert_same_table, module, write_folder

from datamodules import ParquetRCTDataModule, TableRCTDataModule
from lightning_budget.data.stream import scan as scanning
from lightning_budget.data.stream.sample import UserSample, user_hash
from lightning_budget.data.stream.scan import ScanRequest, scan
from lightning_budget.data.stream.seen import SeenUsers
from lightning_budget.errors import InputError
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.trial.rows import KINDS

RICH: dict[str, Any] = {
    "weight": "w",
    "propensity": "estimated",
    "strata": ["city"],
    "nulls": {"age": "mean", "score": 0.5},
    "null_flags": ["age"],
    "hashed": {"level": 50},
    "cost": None,
    "cost_formula": "paid * buys",
}
DROP: dict[str, Any] = {"split_column": "part", "straddling": "drop"}


@pytest.fixture
def rich(trial: pa.Table) -> pa.Table:
    """With weights and nulls."""
    rng = np.random.default_rng(1)
    for name in ("age", "score"):
        mask = rng.random(len(trial)) < 0.2
        column = pa.array(trial[name].to_numpy().astype(float), mask=mask)
        trial = trial.set_column(trial.schema.get_field_index(name), name, column)
    return trial.append_column("w", pa.array(rng.integers(0, 4, len(trial)).astype(float)))


def whole(data: ParquetRCTDataModule, path: Path) -> TableRCTDataModule:
    """The same trial read whole, in batches as ``data`` has them."""
    held = TableRCTDataModule(str(path), "arm", ["none", "low", "high"], "spend", "paid", dense=["age"])
    held.columns, held.rule, held.exclude, held.check_shares = data.columns, data.rule, data.exclude, 0
    held.setup()
    return held


@pytest.mark.parametrize("settings", [{}, RICH, {"split_column": "part", "user": None}])
def test_as_reading_it_whole(tmp_path: Path, rich: pa.Table, settings: dict[str, Any]) -> None:
    part = np.random.default_rng(2).choice(["train", "val", "test"], len(rich))
    table = rich.append_column("part", pa.array(part))
    if not settings.get("nulls"):
        table = table.set_column(table.schema.get_field_index("age"), "age", table["age"].fill_null(40))
        table = table.set_column(table.schema.get_field_index("score"), "score", table["score"].fill_null(0))
    data = module(write_folder(table, tmp_path / "d"), **settings)
    data.setup()
    held = whole(data, tmp_path / "d")
    for name in ("train", "val", "test"):
        assert_same_table(data.split(name), held.split(name))
        assert data.rows[name] == len(held.split(name))
    assert not data.train_is_sample
    ours, theirs = (
        dict(zip(s.strata, s.share, strict=True)) if s else {} for s in (data.schema.shares, held.schema.shares)
    )
    assert ours.keys() == theirs.keys()
    for stratum, share in ours.items():
        assert share == pytest.approx(theirs[stratum])
    assert data.schema.sparse == held.schema.sparse
    assert data.schema.dense == held.schema.dense
    for a, b in zip(data.schema.nulls, held.schema.nulls, strict=True):
        assert (a.column, a.flag) == (b.column, b.flag)
        assert a.value == pytest.approx(b.value, rel=1e-12)
    for name, ours in data.statistics.to_dict().items():
        assert ours == pytest.approx(held.statistics.to_dict()[name], rel=1e-9, abs=1e-12), name
    # Position in the training split is position in the table.
    rows = torch.cat([b.row for b in data.train_dataloader()])
    assert sorted(rows.tolist()) == list(range(len(held.train)))


def test_any_processes_and_threads(tmp_path: Path, rich: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks, played one after the other, find to the bit what one does, samples included."""
    data = module(write_folder(rich, tmp_path / "d"), **RICH)
    trial = data.open()
    request = ScanRequest(sample_rows=60, eval_rows=40, check_shares=0, shown=False)
    alone = scan(trial, request, None, Ranks())
    found: list[Any] = []
    for size in (3, 2):

        class Played(Ranks):
            def gather(self, mine: Any) -> list[Any]:
                return [mine]

        found.clear()
        for rank in reversed(range(size)):

            class OneOf(Played):
                def gather(self, mine: Any) -> list[Any]:
                    if not isinstance(mine, scanning._Found):
                        return [mine]
                    found.insert(0, mine)
                    return list(found)

            if rank:
                monkeypatch.setattr(scanning._Scan, "result", lambda self: None)
                scan(trial, ScanRequest(60, 40, 0, 2, False), None, OneOf(rank, size))
                monkeypatch.undo()
            else:
                together = scan(trial, ScanRequest(60, 40, 0, 2, False), None, OneOf(rank, size))
        assert together.statistics == alone.statistics
        assert together.schema == alone.schema
        assert together.piece_rows == alone.piece_rows
        for name, table in alone.tables.items():
            assert_same_table(together.tables[name], table)
    assert 0 < len(alone.tables["train"]) <= 60


@pytest.mark.parametrize("seed", range(20))
def test_a_sample_of_parts_is_that_of_all(seed: int) -> None:
    """In any order, taken in by two samples that are then merged; the largest that fits, of whole users."""
    rng = np.random.default_rng(seed)
    user, most = rng.integers(0, 40, 300), int(rng.integers(5, 150))
    u, number = user_hash(user), np.arange(300)
    one, two = UserSample(most), UserSample(most)
    for part in np.array_split(rng.permutation(300), 15):
        # Most of the rows fall to one of them, so that only that one has to leave users out.
        sample = one if rng.random() < 0.07 else two
        sample.add(u[part], number[part], pa.table({"user": user[part]}))
    one.merge(two)
    rows, kept = one.finish()
    lowest = np.sort(u)[most]
    expected = u < lowest if (u < lowest).any() else u <= lowest
    assert kept.tolist() == np.flatnonzero(expected).tolist()
    assert rows["user"].to_pylist() == user[kept].tolist()
    assert len(kept) <= most or len(set(user[kept])) == 1


def test_samples_are_whole_users(tmp_path: Path, trial: pa.Table) -> None:
    folder = write_folder(trial, tmp_path / "d")
    data, full = module(folder, sample_rows=100, eval_rows=30), module(folder)
    data.setup()
    full.setup()
    assert data.train_is_sample
    for name, most in (("train", 100), ("val", 30), ("test", 30)):
        kept, every = data.split(name), full.split(name)
        assert 0 < len(kept) <= most
        there = torch.isin(every.user, kept.user)
        assert_same_table(kept, every.select(there.nonzero()[:, 0]))
    assert data.schema == full.schema
    assert data.statistics == full.statistics


def test_a_second_start_does_not_scan(tmp_path: Path, trial: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(trial, tmp_path / "d")
    first = module(folder, cache=str(tmp_path / "c"))
    first.setup()
    with monkeypatch.context() as patch:
        patch.setattr("datamodules.parquet_rct.scan", lambda *_: pytest.fail("scanned again"))
        again = module(folder, cache=str(tmp_path / "c"))
        again.use_schema(first.schema)
        again.setup()
    assert again.statistics == first.statistics
    assert_same_table(again.val, first.val)
    assert [b.row.tolist() for b in again.train_dataloader()] == [b.row.tolist() for b in first.train_dataloader()]
    # A damaged file in the cache is none.
    for path in (tmp_path / "c").glob("*.profile"):
        path.write_bytes(path.read_bytes()[:100])
    third = module(folder, cache=str(tmp_path / "c"))
    third.setup()
    assert third.schema == first.schema
    # Other files are scanned.
    write_folder(trial.slice(30), folder)
    other = module(folder, cache=str(tmp_path / "c"))
    other.setup()
    assert sum(other.rows.values()) == len(trial) - 30


def test_urls_and_hive_folders(tmp_path: Path, trial: pa.Table) -> None:
    import fsspec

    folder = tmp_path / "d"
    for i, city in enumerate(sorted(set(trial["city"].to_pylist()))):
        rows = trial.filter(pa.compute.equal(trial["city"], city)).drop_columns(["city"])  # type: ignore[attr-defined]
        write_folder(rows, folder / f"city={city}", files=1 + i)
    local = module(folder)
    local.setup()
    assert local.schema.sparse[0].vocabulary == ("Bern", "Bonn", "Oslo", "Rome")
    store = fsspec.filesystem("memory")
    store.put(str(folder), "/bucket/trial", recursive=True)
    remote = module("memory://bucket/trial")
    remote.setup()
    assert remote.statistics == local.statistics
    assert [b.row.tolist() for b in remote.train_dataloader()] == [b.row.tolist() for b in local.train_dataloader()]
    single = next(p for p in store.find("/bucket/trial") if "Rome" in p)
    assert module(f"memory:/{single}", categorical=["level"]).open().source.single
    store.rm("/bucket", recursive=True)
    with pytest.raises(InputError, match="no such file"):
        module("memory://bucket/trial").setup()


def test_too_many_labels(tmp_path: Path, trial: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MAX_LABELS", 10)
    folder = write_folder(trial, tmp_path / "d")
    with pytest.raises(InputError, match=r"level.*more than 10 different labels.*data\.hashed"):
        module(folder).setup()
    module(folder, hashed={"level": 20}).setup()


def test_users_in_two_splits(tmp_path: Path, trial: pa.Table) -> None:
    part = np.array(["train", "val", "test"])[np.arange(len(trial)) % 3]
    folder = write_folder(trial.append_column("part", pa.array(part)), tmp_path / "d")
    with pytest.raises(InputError, match=r"uid.* users into several splits"):
        module(folder, split_column="part").setup()
    one = trial.set_column(trial.schema.get_field_index("uid"), "uid", pa.array([7] * len(trial)))
    write_folder(one.append_column("part", pa.array(part)), tmp_path / "e")
    with pytest.raises(InputError, match=r"split 'val' is empty: all .* users whom an earlier split has"):
        module(tmp_path / "e", **DROP).setup()


def spoilt(trial: pa.Table, rng: np.random.Generator) -> pa.Table:
    """With rows of every kind that no estimate can use; none can in rows 200 … 260."""
    n = len(trial)
    where = {name: rng.random(n) < 0.1 for name in ("spend", "paid", "p", "arm")}
    where["spend"][200:260] = True
    for name, bad in (("spend", None), ("paid", -1.0), ("p", 0.0), ("arm", "medium")):
        values = [bad if there else x for x, there in zip(trial[name].to_pylist(), where[name], strict=True)]
        trial = trial.set_column(trial.schema.get_field_index(name), name, pa.array(values))
    return trial


@pytest.mark.parametrize("settings", [{}, {"user": None, "categorical": ["uid"]}, {"propensity": "estimated"}])
def test_rows_are_left_out_as_when_reading_whole(tmp_path: Path, trial: pa.Table, settings: dict[str, Any]) -> None:
    """Whole pieces too; counted alike, after a second start too, and the rest streams."""
    folder = write_folder(spoilt(trial, np.random.default_rng(8)), tmp_path / "d", group_rows=20)
    settings = {**settings, "exclude": list(KINDS), "buffer_rows": 60, "cache": str(tmp_path / "c")}
    data = module(folder, **settings)
    data.setup()
    held = whole(data, folder)
    assert data.screened == held.screened
    assert data.screened is not None
    assert 0 < data.screened.excluded < len(trial)
    for name in ("train", "val", "test"):
        assert_same_table(data.split(name), held.split(name))
    assert data.schema == held.schema
    again = module(folder, **settings)
    again.setup()
    assert again.screened == data.screened
    for batch in again.train_dataloader():
        assert_same_batch(batch, held.train.batch(batch.row))
    assert sum(map(len, again.train_dataloader())) == len(held.train)


def test_what_is_not_to_be_left_out_is_refused(tmp_path: Path, trial: pa.Table) -> None:
    folder = write_folder(spoilt(trial, np.random.default_rng(8)), tmp_path / "d")
    with pytest.raises(InputError, match=r"part-\d.parquet: row group \d+: .* with negative_cost .*data.exclude=\["):
        module(folder, exclude=[kind for kind in KINDS if kind != "negative_cost"]).setup()
    empty = trial.set_column(trial.schema.get_field_index("spend"), "spend", pa.nulls(len(trial), pa.float64()))
    write_folder(empty, tmp_path / "e")
    with pytest.raises(InputError, match="no row is left of 600"):
        module(tmp_path / "e", exclude=["missing_outcome"]).setup()


def test_shares_are_tested_before_rows_leave(tmp_path: Path, trial: pa.Table) -> None:
    """Outcomes missing in one arm are no contradiction to propensities; another propensity is."""
    missing = [None if a == "low" and i % 10 else x for i, (a, x) in enumerate(zip(*pairs(trial), strict=True))]
    one = trial.set_column(trial.schema.get_field_index("spend"), "spend", pa.array(missing))
    folder = write_folder(one, tmp_path / "d")
    data = module(folder, exclude=["missing_outcome"], check_shares=1e-6)
    data.setup()
    assert data.screened is not None
    assert not data.screened.verdict().ok
    with pytest.raises(InputError, match="propensities do not match the arms given"):
        module(folder, exclude=["missing_outcome"], check_shares=1e-6, propensity=[0.1, 0.8, 0.1]).setup()


def pairs(trial: pa.Table) -> tuple[list[str], list[float]]:
    return trial["arm"].to_pylist(), trial["spend"].to_pylist()


@pytest.fixture
def straddling(tmp_path: Path, trial: pa.Table) -> Path:
    """A folder in which a third of the users of val and test are in train too, and some of test in val."""
    rng = np.random.default_rng(6)
    user, part = rng.integers(0, 260, len(trial)), rng.choice(3, len(trial), p=[0.3, 0.3, 0.4])
    table = trial.set_column(trial.schema.get_field_index("uid"), "uid", pa.array(user))
    table = table.append_column("part", pa.array(np.array(["train", "val", "test"])[part]))
    return write_folder(table, tmp_path / "d")


@pytest.mark.parametrize("threads", [1, 2])
def test_straddling_users_are_dropped_as_when_reading_whole(
    straddling: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datamodules.parquet_rct._cores", lambda: threads)
    data = module(straddling, **DROP)
    data.setup()
    held, warned = whole(data, straddling), module(straddling, split_column="part", straddling="warn")
    with pytest.warns(UserWarning, match="users into several splits"):
        warned.setup()
    for name in ("train", "val", "test"):
        assert_same_table(data.split(name), held.split(name))
    assert len(data.train) == len(warned.train)
    assert 0 < len(data.val) < len(warned.val)
    assert 0 < len(data.test) < len(warned.test)
    assert data.statistics == warned.statistics
    assert data.schema == warned.schema


@pytest.mark.parametrize(("most", "eval_rows"), [(1000, 60), (30, 60), (30, 10**6)])
def test_a_bounded_memory_of_users_never_lets_one_straddle(
    straddling: Path, most: int, eval_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer users remembered val and test are smaller samples of the same users, with all their rows."""
    full = module(straddling, **DROP)
    full.setup()
    monkeypatch.setattr(scanning, "MAX_USERS", most)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr("datamodules.parquet_rct._cores", lambda threads=threads: threads)
        data = module(straddling, **DROP, eval_rows=eval_rows)
        data.setup()
        found.append(data)
        for name in ("val", "test"):
            kept, every = data.split(name), full.split(name)
            assert 0 < len(kept) < len(every)
            assert_same_table(kept, every.select(torch.isin(every.user, kept.user).nonzero()[:, 0]))
    for name in ("val", "test"):
        assert_same_table(found[0].split(name), found[1].split(name))


@pytest.mark.parametrize("seed", range(10))
def test_seen_users_are_those_of_the_lowest_hashes(seed: int) -> None:
    """In any order, in two parts that are then merged."""
    rng = np.random.default_rng(seed)
    user, most = rng.integers(-(10**6), 10**6, 200), int(rng.integers(3, 250))
    one, two = SeenUsers(most), SeenUsers(most)
    for part in np.array_split(rng.permutation(np.concatenate([user, user])), 15):
        (one if rng.random() < 0.4 else two).add(np.unique(part))
    one.merge(two)
    every = np.unique(user)
    expected = every[np.sort(np.argsort(user_hash(every))[:most])]
    assert one.users().tolist() == expected.tolist()
    assert (user_hash(every) < one.threshold).sum() == len(expected)


@pytest.fixture
def broken(tmp_path: Path, trial: pa.Table) -> Callable[..., str]:
    """The message for a trial of which one column is replaced from row 450 on, in the last file."""

    def tell(name: str, column: Any, **settings: Any) -> str:
        folder = write_folder(trial, tmp_path / "d")
        last = folder / "part-2.parquet"
        table = pa.parquet.read_table(last)  # type: ignore[attr-defined]
        if column is None:
            table = table.drop_columns([name])
        else:
            values = table[name].to_pylist()
            values[-100:] = [column] * 100
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
        pa.parquet.write_table(table, last, row_group_size=40)  # type: ignore[attr-defined]
        with pytest.raises(InputError) as error:
            module(folder, **settings).setup()
        return str(error.value)

    return tell


@pytest.mark.parametrize(
    ("name", "entry", "words"),
    [
        ("score", float("nan"), ["part-2.parquet", "row group", "'score'", "NaN"]),
        ("arm", "medium", ["part-2.parquet", "row group", "'arm'", "'medium'"]),
        ("paid", -1.0, ["part-2.parquet", "row group", "'paid'", "negative"]),
        ("p", 1.5, ["part-2.parquet", "row group", "'p'", "propensities"]),
        ("spend", None, ["part-2.parquet", "no column 'spend'"]),
    ],
)
def test_one_error_names_the_place(broken: Callable[..., str], name: str, entry: Any, words: list[str]) -> None:
    message = broken(name, entry)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_another_type_in_one_partition(tmp_path: Path, trial: pa.Table) -> None:
    folder = write_folder(trial, tmp_path / "d")
    last = folder / "part-2.parquet"
    table = pa.parquet.read_table(last)  # type: ignore[attr-defined]
    text = table.set_column(table.schema.get_field_index("score"), "score", table["score"].cast(pa.string()))
    pa.parquet.write_table(text, last)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"part-2.parquet: column 'score' has type string"):
        module(folder).setup()
    # Numbers of another width are numbers.
    narrow = table.set_column(table.schema.get_field_index("age"), "age", table["age"].cast(pa.int16()))
    pa.parquet.write_table(narrow, last)  # type: ignore[attr-defined]
    module(folder).setup()
