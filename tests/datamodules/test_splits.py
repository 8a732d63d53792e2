"""Splits by user, by time and as given: what goes where, in whole files and in pieces of them."""

from __future__ import annotations

import datetime as dt
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from datamodules import TableRCTDataModule
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.splits import SplitRule, split_of
from lightning_budget.data.trial import read_trial
from lightning_budget.data.trial_rows import file_of_rows, trial_rows
from lightning_budget.data.where import Where
from lightning_budget.errors import InputError
from lightning_budget.hashing import hashed_uniform

Save = Callable[..., Path]
DAY0 = dt.datetime(2024, 3, 1, tzinfo=dt.UTC)
SHARES = (0.5, 0.3, 0.2)


@pytest.fixture
def timed(trial: pa.Table) -> pa.Table:
    """Rows of 30 days, in no order; labels of the days before 11, 11 to 20, and after; users who come once."""
    day = np.random.default_rng(1).permutation(600) % 30
    label = np.array(["train", "val", "test"])[day // 10]
    return (
        trial.append_column("day", pa.array(day))
        .append_column("part", pa.array(label))
        .set_column(0, "uid", pa.array(np.arange(600)))
    )


def parts(table: pa.Table, columns: TableColumns, rule: SplitRule) -> list[int]:
    return split_of(file_of_rows(table, "t"), columns, rule).tolist()


@pytest.mark.parametrize(("user", "digest"), [("uid", "b35f897893bc4693"), (None, "0cb24a7d7b2ac070")])
def test_splits_by_user_stay_what_they_were(
    user: str | None, digest: str, trial: pa.Table, columns: TableColumns
) -> None:
    part = split_of(file_of_rows(trial, "t"), replace(columns, user=user), SplitRule(seed=3))
    assert hashlib.sha256(part.tobytes()).hexdigest()[:16] == digest
    if user:
        u = hashed_uniform(trial["uid"].to_numpy(), 3, "split")
        assert part.tolist() == [0 if x < 0.6 else 1 if x < 0.8 else 2 for x in u]


@pytest.mark.parametrize("by", ["user", "features", "time", "given"])
def test_a_batch_is_split_as_the_whole_file_is(by: str, timed: pa.Table, columns: TableColumns) -> None:
    rules = {"time": SplitRule(boundaries=(10, 20)), "given": SplitRule(column="part")}
    rule = rules.get(by, SplitRule())
    columns = replace(columns, user=None if by == "features" else "uid", time="day")
    assert rule.of_row_alone
    whole = parts(timed, columns, rule)
    assert sorted(set(whole)) == [0, 1, 2]
    assert [p for i in range(0, 600, 77) for p in parts(timed.slice(i, 77), columns, rule)] == whole


def test_rows_of_a_batch_are_those_of_the_file(timed: pa.Table, columns: TableColumns, save: Save) -> None:
    columns = replace(columns, user=None, weight="age", cost=None, cost_formula="paid + 0", nulls={"score": 1.5})
    trial = read_trial(save(timed), columns, split=(1, 0, 0))
    start = 0
    for batch in timed.to_batches(max_chunksize=250):
        rows = trial_rows(file_of_rows(batch, "t", Where(start)), columns, trial.schema)
        whole = trial.splits["train"].select(torch.arange(start, start + len(rows)))
        for name in ("user", "dense", "treatment", "value", "cost", "propensity", "weight"):
            assert torch.equal(getattr(rows, name), getattr(whole, name)), name
        assert torch.equal(rows.ids["viewed"].values, whole.ids["viewed"].values)  # type: ignore[union-attr]
        start += len(rows)


def test_stratified_shares_hold_in_every_arm(trial: pa.Table, columns: TableColumns) -> None:
    """An arm per user, as trials by user have."""
    user = trial["uid"].to_numpy()
    of_user = np.array(["none", "none", "none", "low", "high"])[user % 5]
    table = trial.set_column(1, "arm", pa.array(of_user))
    rule = SplitRule(SHARES, stratify=True, seed=2)
    part = np.array(parts(table, columns, rule))
    for arm in columns.arms:
        users = np.unique(user[of_user == arm])
        for i, share in enumerate(SHARES):
            there = np.unique(user[(of_user == arm) & (part == i)])
            assert abs(len(there) - share * len(users)) <= 1, (arm, i)
    assert all(len(set(part[user == u])) == 1 for u in np.unique(user))
    order = np.random.default_rng(0).permutation(600)
    assert parts(table.take(pa.array(order)), columns, rule) == part[order].tolist()
    # The lowest hashes train.
    u = hashed_uniform(user, 2, "split")
    none = of_user == "none"
    assert u[none & (part == 0)].max() < u[none & (part > 0)].min()
    assert not rule.of_row_alone
    assert part.tolist() != parts(table, columns, SplitRule(SHARES, seed=2))


def as_kind(day: np.ndarray, kind: str) -> Any:
    moments = [DAY0 + dt.timedelta(days=int(d)) for d in day]
    return {
        "number": pa.array(day.astype(np.float32)),
        "date": pa.array([m.date() for m in moments]),
        "timestamp": pa.array([m.replace(tzinfo=None) for m in moments], pa.timestamp("s")),
        "zoned": pa.array(moments, pa.timestamp("ns", "Asia/Tokyo")),
        "text": pa.array([m.date().isoformat() for m in moments]),
        "text of numbers": pa.array([str(d) for d in day]),
    }[kind]


KINDS = [(kind, "trial.parquet") for kind in ("number", "date", "timestamp", "zoned", "text", "text of numbers")]


@pytest.mark.parametrize(("kind", "name"), [*KINDS, ("number", "trial.csv"), ("date", "trial.csv")])
def test_splits_by_time(kind: str, name: str, timed: pa.Table, columns: TableColumns, save: Save) -> None:
    day = timed["day"].to_numpy()
    table = timed.append_column("when", as_kind(day, kind)).drop_columns(["viewed"])
    bounds = (10, 20.0) if "number" in kind else ("2024-03-11", dt.date(2024, 3, 21))
    rule = SplitRule(boundaries=bounds)
    found = read_trial(save(table, name), replace(columns, lists=(), time="when"), rule)
    for i, split in enumerate(("train", "val", "test")):
        assert found.splits[split].user.tolist() == np.flatnonzero(day // 10 == i).tolist()


def test_splits_as_given(timed: pa.Table, columns: TableColumns, save: Save) -> None:
    found = read_trial(save(timed), columns, SplitRule(column="part"))
    day = timed["day"].to_numpy()
    assert [found.splits[s].user.tolist() for s in ("train", "val", "test")] == [
        np.flatnonzero(day // 10 == i).tolist() for i in range(3)
    ]


RULES: dict[str, tuple[dict[str, Any], str]] = {
    "out of order": ({"boundaries": ("2024-03-02", "2024-03-01")}, "out of order; allowed: the earlier one first"),
    "equal": ({"boundaries": (3, 3.0)}, "out of order"),
    "one": ({"boundaries": (3,)}, "allowed: two points of time"),
    "no date": ({"boundaries": ("soon", "later")}, "boundary 'soon'; allowed: a number, or a date"),
    "NaN": ({"boundaries": (float("nan"), 1)}, "boundary nan"),
    "mixed": ({"boundaries": (3, "2024-03-01")}, "two numbers, or two dates"),
    "two rules": ({"boundaries": (1, 2), "column": "part"}, "allowed: one rule"),
    "strata by time": ({"boundaries": (1, 2), "stratify": True}, "stratify in a split that is not by user"),
    "straddling by user": ({"straddling": "drop"}, "straddling='drop' in a split by user"),
    "unknown straddling": ({"column": "part", "straddling": "keep"}, "allowed: refuse, warn, drop"),
    "shares": ({"shares": (0.5, 0.4, 0.2)}, "split=[0.5, 0.4, 0.2]"),
}


@pytest.mark.parametrize("case", RULES)
def test_rules_that_do_not_fit(case: str) -> None:
    change, found = RULES[case]
    with pytest.raises(InputError) as caught:
        SplitRule(**change)
    assert found in str(caught.value)


def test_what_the_file_cannot_be_split_by(timed: pa.Table, columns: TableColumns, save: Save) -> None:
    def refused(rule: SplitRule, time: str | None = "day", **changed: Any) -> str:
        table = timed
        for name, values in changed.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(values))
        with pytest.raises(InputError) as caught:
            read_trial(save(table), replace(columns, time=time), rule)
        return str(caught.value)

    by_time, given = SplitRule(boundaries=(10, 20)), SplitRule(column="part")
    day, label = timed["day"].to_pylist(), timed["part"].to_pylist()
    assert "a split by time without a time column" in refused(by_time, None)
    assert "no column 'dya' (for time)" in refused(by_time, "dya")
    message = refused(by_time, day=[*day[:599], None])
    assert "column 'day' has no time in 1 of 600 rows, the first in row 599, row group 0" in message
    assert "column 'day' has the entry 'noon'" in refused(by_time, day=["noon", *map(str, day[1:])])
    assert "column 'day' has both numbers and dates" in refused(by_time, day=["2024-01-01", *map(str, day[1:])])
    assert "column 'viewed' has type list" in refused(by_time, "viewed")
    assert "has numbers, the boundary is '2024-03-01'" in refused(SplitRule(boundaries=("2024-03-01", "2024-03-02")))
    message = refused(SplitRule(boundaries=(10, 99)))
    assert "split 'test' by boundaries=['10', '99'] is empty (200 train, 400 val, 0 test rows of 600)" in message
    message = refused(given, part=["train", "vall", *label[2:]])
    assert "column 'part' has the unknown split 'vall'" in message
    assert "the first in row 1" in message
    assert message.endswith("write 'val'")
    assert "column 'part' has no split (1 rows" in refused(given, part=[None, *label[1:]])
    assert "split 'val' by column 'part' is empty" in refused(given, part=["train", "test"] * 300)


def test_users_in_several_splits(timed: pa.Table, columns: TableColumns, save: Save) -> None:
    names = [f"u{i}" for i in range(600)]
    day = timed["day"].to_numpy()
    old, new, late = (int(np.flatnonzero(day // 10 == i)[0]) for i in range(3))
    names[new] = names[old]  # u<old> trains and validates
    names[late] = "again"
    names[int(np.flatnonzero(day // 10 == 1)[1])] = "again"
    path = save(timed.set_column(0, "uid", pa.array(names)))
    by_time = replace(columns, time="day")
    told = rf"puts 2 of 598 users into several splits, for example '(u{old}|again)' into (train and val|val and test)"
    with pytest.warns(UserWarning, match=told):
        warned = read_trial(path, by_time, SplitRule(boundaries=(10, 20)))
    assert [len(t) for t in warned.splits.values()] == [200, 200, 200]
    with pytest.raises(InputError, match=told):
        read_trial(path, columns, SplitRule(column="part"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dropped = read_trial(path, by_time, SplitRule(boundaries=(10, 20), straddling="drop")).splits
        # Rows without a user column are users of their own.
        read_trial(path, replace(columns, user=None), SplitRule(column="part"))
    assert [len(t) for t in dropped.values()] == [200, 199, 199]
    users = [set(t.user.tolist()) for t in dropped.values()]
    assert not users[0] & users[1] | users[0] & users[2] | users[1] & users[2]


def test_by_the_data_module(timed: pa.Table, columns: TableColumns, save: Save) -> None:
    settings = {name: getattr(columns, name) for name in columns.__dataclass_fields__}
    path = str(save(timed))
    data = TableRCTDataModule(path, **settings | {"time": "day"}, boundaries=[10, 20])
    data.setup()
    assert data.val.user.tolist() == np.flatnonzero(timed["day"].to_numpy() // 10 == 1).tolist()
    data = TableRCTDataModule(path, **settings, split=[0.5, 0.5, 0.0])
    with pytest.raises(InputError, match=r"split 'test' is empty \(\d+ train, \d+ val, 0 test rows\)"):
        data.setup()
