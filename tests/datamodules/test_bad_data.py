"""Everything that can be amiss in a file gets one line: what, where, allowed, fix."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lightning_budget.data.columns import TableColumns
from lightning_budget.data.files import write_parquet
from lightning_budget.data.trial import read_rct
from lightning_budget.data.users import read_users, write_users
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema, SparseFeature

Save = Callable[..., Path]


def put(trial: pa.Table, name: str, values: Any) -> pa.Table:
    return trial.set_column(trial.column_names.index(name), name, pa.array(values))


def with_first(trial: pa.Table, name: str, *first: Any) -> pa.Table:
    return put(trial, name, [*first, *trial[name].to_pylist()[len(first) :]])


def refused(path: Path, columns: TableColumns, **options: Any) -> str:
    """The message, checked for its form."""
    with pytest.raises(InputError) as caught:
        read_rct(path, columns, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.count("; allowed: ") == message.count("; fix: ") == 1
    assert not any(part.strip() == "" for part in message.replace("; fix:", "; allowed:").split("; allowed:"))
    return message


NAN, INF = float("nan"), float("inf")
CASES = {
    "null value": (
        "spend",
        (None, 1.0, NAN),
        "column 'spend' has 2 null, NaN or infinite entries of 600",
        "drop those rows, or fill",
    ),
    "infinite cost": ("paid", (INF,), "column 'paid' has 1 null, NaN or infinite", "fill"),
    "null propensity": ("p", (None,), "column 'p' has 1 null, NaN or infinite", "fill"),
    "null dense": ("age", (None, None), "column 'age' has 2 null, NaN or infinite", "fill"),
    "dense too large for float32": ("score", (1e300,), "column 'score' has 1 null, NaN or infinite", "fill"),
    "null arm": ("arm", (None, ""), "column 'arm' has 2 null or empty entries of 600", "drop those rows"),
    "null user": ("uid", (None,), "column 'uid' names no user in 1 of 600 rows", "drop those rows"),
    "unknown arm, misspelt": (
        "arm",
        ("hihg",),
        "unknown arm 'hihg'; allowed: 'none', 'low', 'high'",
        "spell 'high' as in the file",
    ),
    "unknown arm": ("arm", ("zzz",), "column 'arm' has the unknown arm 'zzz'", "add it to arms, or drop its rows"),
    "propensity 0": ("p", (0.0, 0.3), "column 'p' has 1 propensities outside (0, 1], the first 0;", "drop those rows"),
    "propensity above 1": (
        "p",
        (0.3, 1.5, -1.0),
        "column 'p' has 2 propensities outside (0, 1], the first 1.5;",
        "drop those rows",
    ),
    "negative cost": ("paid", (-1.0, -2.0), "column 'paid' has 2 negative costs, the first in row 0", "mend them"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["trial.parquet", "trial.csv"])
def test_bad_entries(case: str, name: str, trial: pa.Table, columns: TableColumns, save: Save) -> None:
    column, first, found, fix = CASES[case]
    path = save(with_first(trial, column, *first).drop_columns(["viewed"]), name)
    message = refused(path, replace(columns, lists=()))
    assert message.startswith(str(path))
    assert found in message
    assert fix in message.split("; fix: ")[1]


def test_missing_column_names_close_matches(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    message = refused(save(trial), replace(columns, value="spnd"))
    assert "no column 'spnd' (for value); allowed: uid, arm, spend, buys" in message
    assert message.endswith("did you mean 'spend'?")
    assert refused(save(trial), replace(columns, dense=("xyzzy",))).endswith("name another column for dense")
    assert "no column 'arrm' (for treatment)" in refused(
        save(trial.drop_columns(["viewed"]), "t.csv"), replace(columns, treatment="arrm")
    )


def test_text_where_numbers_belong(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    assert "column 'city' has type string; allowed: numbers" in refused(
        save(trial), replace(columns, dense=("city",), categorical=("level",))
    )
    path = save(put(trial.drop_columns(["viewed"]), "age", ["forty", *map(str, range(599))]), "trial.csv")
    message = refused(path, replace(columns, lists=()))
    assert "trial.csv: column 'age' has the entry 'forty'" in message
    assert "list the column under categorical" in message


def test_wrong_kinds_of_features(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(trial)
    assert "column 'score' has fractions" in refused(path, replace(columns, dense=("age",), categorical=("score",)))
    assert "column 'viewed' has type list<" in refused(path, replace(columns, categorical=("viewed",), lists=()))
    assert "column 'viewed' has type list<" in refused(path, replace(columns, dense=("viewed",), lists=()))
    assert "column 'city' has type string; allowed: a Parquet list" in refused(
        path, replace(columns, categorical=(), lists=("city",))
    )
    flat = save(trial.drop_columns(["viewed"]), "trial.csv")
    assert "allowed: a Parquet list" in refused(flat, replace(columns, categorical=(), lists=("city",)))


def test_no_label_in_training(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    message = refused(save(put(trial, "city", pa.nulls(600, pa.string()))), columns)
    assert "column 'city' has no label in the training split" in message


def test_binary_outcome_with_other_values(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    message = refused(save(with_first(trial, "buys", 2, 3)), replace(columns, value="buys", value_kind="binary"))
    assert "column 'buys' has 2 entries other than 0 and 1" in message
    assert message.endswith("set its kind to continuous")


def test_known_cost_contradicts_the_column(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    message = refused(save(trial), replace(columns, cost_per_arm=(0.0, 1.0, 2.0)))
    assert "has cost 2.5 for arm 'high'; allowed: 2 as in cost_per_arm" in message


def test_unreadable_files(columns: TableColumns, tmp_path: Path, trial: pa.Table, save: Save) -> None:
    def file(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    flat = replace(columns, lists=())
    header = ",".join(n for n in trial.column_names if n != "viewed").encode()
    assert "nowhere.csv: no such file" in refused(tmp_path / "nowhere.csv", columns)
    assert "a.xlsx: suffix '.xlsx'; allowed: a .csv, .csv.gz or .parquet file" in refused(file("a.xlsx", b"x"), columns)
    assert "b.parquet cannot be read" in refused(file("b.parquet", b"not parquet"), columns)
    assert "c.csv is empty" in refused(file("c.csv", b""), columns)
    assert "d.csv has no rows" in refused(file("d.csv", header + b"\n"), flat)
    assert "e.parquet has no rows" in refused(save(trial.slice(0, 0), "e.parquet"), columns)
    assert "f.csv.gz cannot be read" in refused(file("f.csv.gz", b"not gzip"), flat)
    assert "g.csv.gz cannot be read" in refused(file("g.csv.gz", gzip.compress(header * 9)[:-20]), flat)
    assert "h.csv cannot be read" in refused(file("h.csv", header + b"\n1,2\n"), flat)
    assert "i.csv has 2 columns 'arm'" in refused(file("i.csv", header.replace(b"spend", b"arm") + b"\n"), flat)
    (tmp_path / "folder").mkdir()
    assert "folder has no .parquet file" in refused(tmp_path / "folder", columns)


@pytest.mark.parametrize("split", [(0.6, 0.4), (0.6, 0.6, -0.2), (0.5, 0.2, 0.2), (0.6, 0.2, float("nan"))])
def test_bad_split(split: tuple[float, ...], trial: pa.Table, columns: TableColumns, save: Save) -> None:
    assert "split=[" in refused(save(trial), columns, split=split)


def test_schema_of_another_trial(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(trial)
    _, schema = read_rct(path, columns)
    message = refused(path, replace(columns, dense=("age",)), schema=schema)
    assert "dense ['age']; allowed: ['age', 'score'], as in the schema given" in message


MISFITS = {
    "one arm": ({"arms": ("none",)}, "arms=['none']"),
    "arm twice": ({"arms": ("a", "b", "a")}, "arms=['a', 'b', 'a']"),
    "no cost": ({"cost": None}, "neither cost nor cost_per_arm"),
    "too few costs": ({"cost": None, "cost_per_arm": (0.0, 1.0)}, "cost_per_arm=[0.0, 1.0] for 3 arms"),
    "negative cost": ({"cost": None, "cost_per_arm": (0.0, 1.0, -1.0)}, "cost_per_arm=[0.0, 1.0, -1.0]"),
    "NaN cost": ({"cost": None, "cost_per_arm": (0.0, 1.0, NAN)}, "cost_per_arm=[0.0, 1.0, nan]"),
    "null cost without column": ({"cost": None, "cost_per_arm": (0.0, 1.0, None)}, "cost_per_arm=[0.0, 1.0, None]"),
    "propensity 0": ({"propensity": (0.5, 0.5, 0.0)}, "propensity=[0.5, 0.5, 0.0] for 3 arms"),
    "propensities above 1": ({"propensity": (0.5, 0.5, 0.5)}, "propensity=[0.5, 0.5, 0.5]"),
    "NaN propensity": ({"propensity": (0.5, 0.5, NAN)}, "propensity=[0.5, 0.5, nan]"),
    "two propensities": ({"propensity": (0.5, 0.5)}, "propensity=[0.5, 0.5] for 3 arms"),
    "unknown kind": ({"value_kind": "count"}, "value_kind='count'; allowed: continuous, binary"),
    "outcome as feature": ({"dense": ("age", "spend")}, "column 'spend' as a feature and as treatment or outcome"),
    "propensity as feature": ({"dense": ("p",)}, "column 'p' as a feature"),
    "no features": ({"dense": (), "categorical": (), "lists": ()}, "no features"),
    "feature twice": ({"categorical": ("city", "city")}, "feature 'city' is listed twice"),
    "list and label": ({"categorical": ("viewed",)}, "feature 'viewed' is listed twice"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_parts_that_do_not_fit(case: str, columns: TableColumns) -> None:
    change, found = MISFITS[case]
    with pytest.raises(InputError) as caught:
        replace(columns, **change)
    assert found in str(caught.value)


def test_users_file(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    _, schema = read_rct(save(trial), columns)
    with pytest.raises(
        InputError, match=r"no column 'user_id' \(for user\); allowed: uid, .*; fix: did you mean 'uid'"
    ):
        read_users(save(trial), schema)
    with pytest.raises(InputError, match=r"no column 'age' \(for dense\)"):
        read_users(save(trial.drop_columns(["age"])), schema, user="uid")
    with pytest.raises(InputError, match="column 'score' has 1 null, NaN"):
        read_users(save(with_first(trial, "score", None)), schema, user="uid")
    numbered = DataSchema(("a", "b"), (), (SparseFeature("city", 9),))
    with pytest.raises(InputError, match=r"column 'city' has the entry '.*'; allowed: whole numbers 0 … 7"):
        read_users(save(trial), numbered, user="uid")


def test_output_that_cannot_be_written(trial: pa.Table, columns: TableColumns, save: Save, tmp_path: Path) -> None:
    splits, schema = read_rct(save(trial), columns)
    with pytest.raises(InputError, match=r"missing/users.parquet cannot be written: No such file"):
        write_users(splits["val"], schema, tmp_path / "missing" / "users.parquet")
    with pytest.raises(InputError, match=r"users.xls as output; allowed: a .parquet file"):
        write_parquet(trial, tmp_path / "users.xls")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trial.parquet"]


def test_labels_that_are_numbers(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    # A 0/1 treatment column: labels are compared as text.
    arm = np.array([{"none": 0, "low": 1, "high": 2}[a] for a in trial["arm"].to_pylist()])
    message = refused(save(put(trial, "arm", arm)), replace(columns, arms=("0", "1"), propensity="uniform"))
    assert "unknown arm '2'; allowed: '0', '1'" in message
