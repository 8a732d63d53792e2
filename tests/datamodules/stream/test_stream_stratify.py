"""Streamed rows are stratified as all of them in memory are, user by user, in bounded memory."""

from __future__ import annotations

import errno
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from streamed import COLUMNS, all_rows, assert_same_batch, assert_same_table, module, write_folder

from datamodules import TableRCTDataModule
from lightning_budget.data.arm_cuts import ArmCuts
from lightning_budget.data.files import read_columns
from lightning_budget.data.screening import screened, screened_part
from lightning_budget.data.splits import feature_hash, split_of
from lightning_budget.data.stream import user_arms
from lightning_budget.data.stream.stratify import arm_cuts
from lightning_budget.data.stream.trial_source import TrialSource
from lightning_budget.data.stream.user_arms import UserArms
from lightning_budget.errors import InputError
from lightning_budget.hashing import hash_ids, hashed_uniform
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.trial.rows import KINDS

ARMS = np.array(COLUMNS["arms"])
SHARES = (0.5, 0.3, 0.2)


def table_of(user: np.ndarray, arm: np.ndarray, rng: np.random.Generator) -> pa.Table:
    n = len(user)
    return pa.table(
        {
            "uid": user,
            "arm": ARMS[arm],
            "spend": rng.exponential(3.0, n),
            "paid": np.array([0.0, 1.0, 2.5])[arm],
            "p": np.full(n, 1 / 3),
            "age": rng.integers(18, 80, n),
            "score": rng.integers(0, 9, n),
            "city": np.array(["Rome", "Bonn"])[rng.integers(0, 2, n)],
            "level": rng.integers(1, 4, n),
            "viewed": pa.array([["a"]] * n, pa.list_(pa.string())),
        }
    )


def random_trial(seed: int, several: bool = False) -> pa.Table:
    """Up to 300 users of one arm each, or several; the last arm has few; users come again and again, or not."""
    rng = np.random.default_rng(seed)
    names = rng.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, int(rng.integers(30, 300)))
    which = rng.integers(0, len(names), int(rng.integers(100, 700)))
    share = [0.69, 0.3, 0.01] if seed % 2 else [0.4, 0.3, 0.3]
    arm = rng.choice(3, len(which), p=share) if several else rng.choice(3, len(names), p=share)[which]
    return table_of(names[which], arm, rng)


def reference(user: np.ndarray, arm: np.ndarray, seed: int) -> list[int]:
    """Splits of rows, one user after the other."""
    own: dict[int, int] = {}
    for u, a in zip(user.tolist(), arm.tolist(), strict=True):
        own[u] = min(own.get(u, a), a)
    part: dict[int, int] = {}
    for a in set(own.values()):
        of_arm = [u for u in own if own[u] == a]
        of_arm.sort(key=lambda u: float(hashed_uniform(np.array([u]), seed, "split")[0]))
        for rank, u in enumerate(of_arm):
            place = (rank + 0.5) / len(of_arm)
            part[u] = int(place >= SHARES[0]) + int(place >= SHARES[0] + SHARES[1])
    return [part[u] for u in user.tolist()]


def cuts_of(trial: TrialSource, folder: Path | None = None, threads: int = 2, ranks: Ranks | None = None) -> ArmCuts:
    return arm_cuts(trial, folder, threads, False, ranks or Ranks())


def parts_of(trial: TrialSource, cuts: ArmCuts) -> np.ndarray:
    """Splits of all rows, read piece by piece."""
    found = []
    for piece in trial.source.pieces:
        file = trial.read(piece)
        if trial.exclude:
            file, _ = screened_part(file, trial.columns, trial.exclude)
        found.append(split_of(file, trial.columns, trial.rule, cuts))
    return np.concatenate(found)


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than forty users and arms do not fit in memory."""
    monkeypatch.setattr(user_arms, "HELD", 40)


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_as_ranking_all_users_in_memory(tmp_path: Path, seed: int, several: bool) -> None:
    table = random_trial(seed, several)
    folder = write_folder(table, tmp_path / "d", files=1 + seed % 3, group_rows=17 + 20 * seed)
    trial = module(folder, stratify=True, split=SHARES, split_seed=seed).open()
    cuts = cuts_of(trial, tmp_path)
    part = parts_of(trial, cuts)
    arm = np.array([COLUMNS["arms"].index(a) for a in table["arm"].to_pylist()])
    user = table["uid"].to_numpy()
    assert part.tolist() == reference(user, arm, seed)
    file = read_columns(folder, trial.roles)
    assert part.tolist() == split_of(file, trial.columns, trial.rule).tolist()
    assert all(len(set(part[user == u])) == 1 for u in np.unique(user))
    if not several:
        assert not len(cuts.others)
        for a in range(3):
            users, first = np.unique(user[arm == a], return_index=True)
            counts = np.bincount(part[arm == a][first], minlength=3)
            assert (np.abs(counts - np.array(SHARES) * len(users)) <= 1).all()
    # The file has no name.
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("seed", range(4))
def test_without_users_rows_of_equal_features_go_together(tmp_path: Path, seed: int) -> None:
    folder = write_folder(random_trial(seed), tmp_path / "d")
    trial = module(folder, stratify=True, split=SHARES, user=None, dense=["score"], lists=[]).open()
    part, file = parts_of(trial, cuts_of(trial)), read_columns(folder, trial.roles)
    assert part.tolist() == split_of(file, trial.columns, trial.rule).tolist()
    who = feature_hash(file, trial.columns)
    assert 1 < len(np.unique(who)) < len(who)
    assert all(len(set(part[who == w])) == 1 for w in np.unique(who))


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("seed", range(4))
def test_rows_left_out_are_not_ranked(tmp_path: Path, seed: int) -> None:
    """Of a formula's cost too."""
    table, rng = random_trial(seed, several=True), np.random.default_rng(seed)
    for name, bad in (("spend", None), ("paid", -1.0), ("arm", "medium")):
        there = rng.random(len(table)) < 0.15
        values = [bad if t else x for x, t in zip(table[name].to_pylist(), there, strict=True)]
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    folder = write_folder(table, tmp_path / "d")
    trial = module(folder, stratify=True, split=SHARES, exclude=list(KINDS), cost=None, cost_formula="2 * paid").open()
    file, rows = screened(read_columns(folder, trial.roles), trial.columns, trial.exclude)
    assert 0 < rows.excluded < len(table)
    assert parts_of(trial, cuts_of(trial)).tolist() == split_of(file, trial.columns, trial.rule).tolist()


def test_no_row_may_be_left(tmp_path: Path) -> None:
    table = random_trial(0)
    table = table.set_column(table.column_names.index("spend"), "spend", pa.nulls(len(table), pa.float64()))
    folder = write_folder(table, tmp_path / "d")
    with pytest.raises(InputError, match="no row is left of"):
        module(folder, stratify=True, exclude=["missing_outcome"]).setup()


class Shared(Ranks):
    """One of several threads that meet where processes would."""

    def __init__(self, rank: int, brought: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(brought))
        self.brought, self.barrier = brought, barrier

    def gather(self, mine: Any) -> list[Any]:
        self.brought[self.rank] = mine
        self.barrier.wait(20)
        found = list(self.brought)
        self.barrier.wait(20)
        return found


@pytest.mark.usefixtures("on_disk")
@pytest.mark.parametrize("ranks", [2, 3])
def test_any_processes_find_the_same(tmp_path: Path, ranks: int) -> None:
    trial = module(write_folder(random_trial(3, several=True), tmp_path / "d"), stratify=True).open()
    brought: list[Any] = [None] * ranks
    barrier, found = threading.Barrier(ranks), {}

    def work(rank: int) -> None:
        found[rank] = cuts_of(trial, None, 2, Shared(rank, brought, barrier))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    alone = cuts_of(trial)
    assert len(alone.others)
    for rank in range(ranks):
        for name in ("bounds", "others", "parts"):
            assert getattr(found[rank], name).tolist() == getattr(alone, name).tolist()


@pytest.mark.parametrize("several", [False, True])
def test_a_stratified_trial_streams(
    tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch, on_disk: None
) -> None:
    """Tables and batches of reading it whole; the second start reads neither users nor rows."""
    folder = write_folder(random_trial(2, several), tmp_path / "d")
    settings = {"stratify": True, "split": SHARES, "cache": str(tmp_path / "c")}
    data = module(folder, **settings)
    data.setup()
    held = TableRCTDataModule(str(folder), **COLUMNS, stratify=True, split=SHARES)
    held.setup()
    plain = module(folder, split=SHARES)
    plain.setup()
    assert plain.train.user.tolist() != held.train.user.tolist()
    for patch in ("datamodules.parquet_rct.scan", "lightning_budget.data.stream.scan.arm_cuts"):
        monkeypatch.setattr(patch, lambda *_: pytest.fail("looked again"))
    again = module(folder, **settings, num_workers=1)
    again.setup()
    for name in ("train", "val", "test"):
        assert_same_table(data.split(name), held.split(name))
        assert_same_table(again.split(name), held.split(name))
    for batch in data.train_dataloader():
        assert_same_batch(batch, held.train.batch(batch.row))
    rows = all_rows(again.train_dataloader())
    assert sorted(rows) == list(range(len(held.train)))
    # Resumed inside an epoch.
    loader = again.train_dataloader()
    for _, batch in zip(range(2), loader, strict=False):
        seen, state = batch, loader.state_dict()
    assert len(seen) == 32
    resumed = again.train_dataloader()
    resumed.load_state_dict(state)
    assert all_rows(resumed) == rows[64:]


@pytest.mark.parametrize("share", [0.5, 0.01, 0.001, 0.0, None])
def test_few_users_of_several_arms_are_listed(tmp_path: Path, share: float | None) -> None:
    """Of 20,000 of whom most were given several arms, whatever the share of the last one: fewer than 3 · 20,000^⅔.

    Without a share, all but three users of the last arm were given another too, and its cuts are those of three.
    """
    rng = np.random.default_rng(5)
    if share is None:
        user = np.tile(np.arange(20_000), 2)
        arm = np.where((np.arange(40_000) < 20_000) & (user > 2), rng.integers(0, 2, 40_000), 2)
    else:
        user, arm = rng.integers(0, 20_000, 100_000), rng.choice(3, 100_000, p=[(1 - share) / 2] * 2 + [share])
    folder = write_folder(table_of(user, arm, rng), tmp_path / "d", files=2, group_rows=20_000)
    trial = module(folder, stratify=True, split=SHARES, buffer_rows=10**6).open()
    cuts = cuts_of(trial)
    file = read_columns(folder, trial.roles)
    assert parts_of(trial, cuts).tolist() == split_of(file, trial.columns, trial.rule).tolist()
    assert 0 < len(cuts.others) < 3 * 20_000 ** (2 / 3)
    assert (np.diff(cuts.others.view(np.int64) ^ np.iinfo(np.int64).min) > 0).all()


@pytest.mark.parametrize("arms", [2, 300])
def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, arms: int) -> None:
    """Keys held, and those of any range, whatever the users: each their own, few, or a single one."""
    monkeypatch.setattr(user_arms, "HELD", 3000)
    monkeypatch.setattr(user_arms, "RANGE_KEYS", 64)
    rows, piece = 100_000, 1000
    rng = np.random.default_rng(6)
    for names in (rows, 100, 1):
        with UserArms(arms, rows) as users:
            assert users.ranges >= max(arms, rows // 64)
            total, expected = 0, set()
            for start in range(0, rows, piece):
                user = np.arange(start, start + piece) % names
                h, arm = hash_ids(user, 0, "split"), user * 7 % arms
                users.add(h, arm)
                expected |= set(zip(h.tolist(), arm.tolist(), strict=True))
                assert sum(len(held) for held, _ in users._held) < 3000
            users.finish()
            found = set()
            for number in rng.permutation(users.ranges):
                keys = users.keys(int(number))
                # About 50 of a range, or a user from every piece.
                assert len(keys) <= max(150, 3 * rows // piece)
                total += len(keys)
                some = users.users(int(number), keys)
                assert all(users.range_of(h) == number for h in some.hashes)
                found |= set(zip(some.hashes.tolist(), some.arms.tolist(), strict=True))
            assert found == expected
            assert total <= names * rows // piece


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_disk: None) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = write_folder(random_trial(1), tmp_path / "d")
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match=r"in .*c: No space left.*data\.cache.*stratify=false"):
            module(folder, stratify=True, cache=str(tmp_path / "c")).setup()


@pytest.mark.parametrize(("name", "bad", "words"), [("arm", "medium", "unknown arm"), ("uid", None, "names no user")])
def test_errors_name_the_row_group(tmp_path: Path, name: str, bad: Any, words: str) -> None:
    table = random_trial(2)
    values = table[name].to_pylist()
    values[-1] = bad
    table = table.set_column(table.column_names.index(name), name, pa.array(values))
    folder = write_folder(table, tmp_path / "d")
    with pytest.raises(InputError, match=rf"part-2.parquet: (row group \d+: )?column '{name}' .*{words}.* row group"):
        module(folder, stratify=True).setup()
