"""Weights, computed costs, estimated propensities and nulls: from the file to the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from datamodules import TableRCTDataModule
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.formula import parse_formula
from lightning_budget.data.splits import SplitRule
from lightning_budget.data.trial import read_rct, read_trial
from lightning_budget.data.users import read_users, write_users
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics

Save = Callable[..., Path]
NAN, INF = float("nan"), float("inf")


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    column = pa.array(values)
    if name not in table.column_names:
        return table.append_column(name, column)
    return table.set_column(table.column_names.index(name), name, column)


def refused(path: Path, columns: TableColumns, *split: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_trial(path, columns, *split, **options)
    return str(caught.value)


# Weights


def test_weights_count_rows(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    """Weights 2 on half of the rows give the statistics, shares and means for nulls of doubled rows."""
    age = trial["age"].to_pylist()
    trial = put(put(trial, "age", [None if i % 7 == 0 else a for i, a in enumerate(age)]), "w", [1.0, 2.0] * 300)
    columns = replace(columns, propensity="estimated", strata=("city",), nulls={"age": "mean"}, null_flags=("age",))
    odd = trial.filter(pa.array(np.arange(600) % 2 == 1))
    weighted, schema = read_rct(save(trial), replace(columns, weight="w"))
    double, same = read_rct(save(pa.concat_tables([trial, odd]), "double.parquet"), columns)
    assert weighted["train"].weight is not None
    assert set(weighted["train"].weight.tolist()) == {1.0, 2.0}
    assert double["train"].weight is None
    a, b = (DataStatistics.from_table(s["train"], schema).to_dict() for s in (weighted, double))
    assert a.keys() == b.keys()
    assert a.pop("weight_mean") == pytest.approx(weighted["train"].weight.mean().item())
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-6), name
    assert schema.nulls[0].value == pytest.approx(same.nulls[0].value, rel=1e-12)
    assert np.array(schema.shares.share) == pytest.approx(np.array(same.shares.share))  # type: ignore[union-attr]
    plain, _ = read_rct(save(trial), columns)
    assert DataStatistics.from_table(plain["train"], schema).value_mean != pytest.approx(a["value_mean"], rel=1e-6)


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        ([-1.0, *[1.0] * 599], "column 'w' has 1 negative weights, the first in row 0"),
        ([1.0, NAN, *[1.0] * 598], "column 'w' has 1 null, NaN or infinite entries of 600, the first in row 1"),
        ([INF, *[1.0] * 599], "column 'w' has 1 null, NaN or infinite"),
        ([0.0] * 600, "column 'w' is 0 in every row"),
    ],
)
def test_weights_that_are_none(
    weight: list[float], found: str, trial: pa.Table, columns: TableColumns, save: Save
) -> None:
    assert found in refused(save(put(trial, "w", weight)), replace(columns, weight="w"))


def test_an_arm_without_weight(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    weight = [0.0 if arm == "low" else 1.0 for arm in trial["arm"].to_pylist()]
    splits, schema = read_rct(save(put(trial, "w", weight)), replace(columns, weight="w"), check_shares=0)
    with pytest.raises(InputError, match="arm 'low' has no rows with a weight above 0 in the training split of 3"):
        DataStatistics.from_table(splits["train"], schema)


# Costs by formula


def test_arithmetic_is_pythons() -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(-3, 4, 50).astype(float) for name in ("x", "y", "z")}
    for text in (
        "x",
        "3",
        "x + y * z - 2.5",
        "-(x - y) / 4 + +z",
        "x / y / 2",
        "max(x, y, 0) - min(x, z)",
        "(x > 0) * y",
        "(x == y) + (x != z)",
        "-1 <= x < 2",
        "(x <= y) * (y >= z) * 1e2",
    ):
        found = np.broadcast_to(parse_formula(text)(columns), 50)
        for i in range(50):
            row = {name: float(x[i]) for name, x in columns.items()}
            try:
                assert found[i] == pytest.approx(float(eval(text, {"min": min, "max": max}, row))), (text, row)
            except ZeroDivisionError:
                assert not np.isfinite(found[i]), (text, row)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x +",
        "x ** 2",
        "x // y",
        "x if y else z",
        "abs(x)",
        "min(x)",
        "min(x, y, key=z)",
        "x.y",
        "x[0]",
        "__import__('os').system('true')",
        "(lambda: x)()",
        "'x'",
        "True",
        "1j",
        "x; y",
        "x in y",
        "not x",
        "x and y",
        "[x, y]",
        "min",
        "1e999",
        "9" * 400,
        "(" * 500 + "x" + ")" * 500,
        "-" * 999 + "x",
        "x +\0 y",
        "x" * 1001,
    ],
)
def test_what_is_no_formula(text: str, columns: TableColumns) -> None:
    with pytest.raises(InputError) as caught:
        replace(columns, cost=None, cost_formula=text)
    assert "formula" in str(caught.value)


def test_costs_by_formula(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    table = put(trial, "redeemed", np.arange(600) % 2)
    computed = replace(columns, cost=None, cost_formula="level * redeemed", levels=(0, 1, 2.5))
    level = np.array([(0, 1, 2.5)[columns.arms.index(a)] for a in trial["arm"].to_pylist()])
    splits, _ = read_rct(save(table), computed, (1, 0, 0))
    assert splits["train"].cost.tolist() == (level * (np.arange(600) % 2)).tolist()
    # The column `level` of the file is a feature all the same; without levels the formula means it.
    own, _ = read_rct(save(table), replace(computed, cost_formula="level", levels=()), (1, 0, 0))
    assert own["train"].cost.tolist() == trial["level"].to_pylist()
    constant, _ = read_rct(save(table), replace(computed, cost_formula="2 * level"), (1, 0, 0))
    assert constant["train"].cost.tolist() == (2 * level).tolist()
    partly, schema = read_rct(save(table), replace(computed, cost_per_arm=(0.0, None, None)), (1, 0, 0))
    assert torch.equal(partly["train"].cost, splits["train"].cost)
    assert schema.known_cost == (0.0, None, None)
    csv, _ = read_rct(save(table.drop_columns(["viewed"]), "trial.csv"), replace(computed, lists=()), (1, 0, 0))
    assert torch.equal(csv["train"].cost, splits["train"].cost)


def test_costs_that_no_formula_gives(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(put(trial, "redeemed", [0.0, 0.0, *np.arange(598) % 2 + 1.0]))

    def found(formula: str, **changes: Any) -> str:
        return refused(path, replace(columns, cost=None, cost_formula=formula, **changes))

    assert "no column 'redemed' (for cost_formula)" in found("2 * redemed")
    assert found("2 * redemed").endswith("did you mean 'redeemed'?")
    assert "column 'city' has type string; allowed: numbers" in found("city")
    message = found("1 / redeemed")
    assert "column '1 / redeemed (cost_formula)' gives 2 costs that are not finite, the first in row 0" in message
    message = found("redeemed - 1")
    assert "has 2 negative costs, the first in row 0" in message
    assert "has cost" in found("1 + redeemed", cost_per_arm=(0.0, None, None))
    assert "2 entries other" not in found("redeemed", cost_kind="binary")
    assert "entries other than 0 and 1" in found("redeemed", cost_kind="binary")


def test_a_formula_over_missing_outcomes(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(put(trial, "redeemed", [None, NAN, *[1.0] * 598]))
    columns = replace(columns, cost=None, cost_formula="level * redeemed", levels=(0, 1, 2))
    assert "column 'redeemed' has 2 null, NaN" in refused(path, columns)
    left = read_trial(path, columns, (1, 0, 0), exclude=["missing_outcome"])
    assert left.rows is not None
    assert left.rows.excluded == 2


# Propensities


@pytest.mark.parametrize("strata", [(), ("city",), ("city", "member")])
def test_estimated_propensities_are_shares_of_the_training_split(
    strata: tuple[str, ...], trial: pa.Table, columns: TableColumns, save: Save
) -> None:
    splits, schema = read_rct(save(trial), replace(columns, propensity="estimated", strata=strata))
    trained = set(splits["train"].user.tolist())
    rows = trial.select(["uid", "arm", *strata]).to_pylist()
    keys = [(tuple(r[s] for s in strata), r["arm"]) for r in rows]
    given = Counter(key for key, row in zip(keys, rows, strict=True) if row["uid"] in trained)
    seen_in = Counter(stratum for stratum, arm in given.elements())
    cells: dict[int, list[float]] = {}
    for key, row in zip(keys, rows, strict=True):
        cells.setdefault(row["uid"], []).append(given[key] / seen_in[key[0]])
    for split in splits.values():
        seen: dict[int, int] = {}
        for user, p in zip(split.user.tolist(), split.propensity.tolist(), strict=True):
            assert p == pytest.approx(cells[user][seen.setdefault(user, 0)], rel=1e-6)
            seen[user] += 1
    assert DataSchema.from_dict(schema.to_dict()) == schema
    assert schema.shares is not None
    assert len(schema.shares.strata) == {0: 1, 1: 4, 2: 8}[len(strata)]


def test_strata_that_cannot_be_used(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    columns = replace(columns, propensity="estimated", strata=("city",))
    city = trial["city"].to_pylist()
    lone = refused(save(put(trial, "city", ["Pisa", *city[1:]])), columns, (1, 0, 0))
    assert "stratum city 'Pisa' has no training row of arm" in lone
    part = ["test", *["train", "val", "test"] * 199, "train", "val"]
    path = save(put(put(put(trial, "part", part), "city", [None, *city[1:]]), "uid", np.arange(600)))
    message = refused(path, columns, SplitRule(column="part"))
    assert "1 rows in strata that the training split does not have: city null, the first in row 0" in message
    with pytest.raises(InputError, match=r"strata=.* with propensity='uniform'"):
        replace(columns, propensity="uniform")


def test_a_given_schema_brings_its_shares_and_fills(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    age = trial["age"].to_pylist()
    table = put(trial, "age", [None if i % 5 == 0 else a for i, a in enumerate(age)])
    rules = replace(columns, propensity="estimated", strata=("city",), nulls={"age": "mean"})
    _, schema = read_rct(save(table), rules)
    later = table.slice(300)
    whole, kept = read_rct(save(later, "later.parquet"), rules, (1, 0, 0), schema=schema)
    assert kept is schema
    row = later["city"].to_pylist()[0], later["arm"].to_pylist()[0]
    shares = schema.shares
    assert shares is not None
    expected = shares.share[shares.strata.index((row[0],))][columns.arms.index(row[1])]
    assert whole["train"].propensity[0].item() == pytest.approx(expected)
    assert whole["train"].dense[0, 0].item() == pytest.approx(schema.nulls[0].value)  # row 300 is null
    assert "the strata of training" in refused(save(later), replace(rules, strata=()), schema=schema)
    assert "nulls (column, flag)" in refused(save(later), replace(rules, nulls={}), schema=schema)
    plain = DataSchema.from_dict({k: v for k, v in schema.to_dict().items() if k not in ("nulls", "shares")})
    assert plain == replace(schema, nulls=(), shares=None)  # as checkpoints without them hold it


def test_declared_propensities_are_compared_with_the_arms(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(trial)
    wrong = replace(columns, propensity=(0.25, 0.25, 0.5))
    message = refused(path, wrong)
    assert "propensities do not match the arms given: arm 'none' has 312 rows, 150 expected, p = " in message
    assert "(level 1e-06); shares of rows: none 0.52, low 0.205, high 0.275" in message
    assert message.endswith("data.check_shares=0")
    assert len(read_trial(path, wrong, (1, 0, 0), check_shares=0).splits["train"]) == 600
    sound = replace(columns, propensity=(0.5, 0.25, 0.25))
    read_trial(path, sound)
    assert "(level 0.5)" in refused(path, replace(columns, propensity=(0.51, 0.24, 0.25)), check_shares=0.5)
    assert "check_shares=1.5" in refused(path, sound, check_shares=1.5)
    message = refused(save(put(trial, "p", [0.9] * 600), "constant.parquet"), columns)
    assert "those of the arms sum to 2.7" in message
    # A column that gives the probability of another arm.
    p = [{"none": 0.25, "low": 0.5, "high": 0.25}[a] for a in trial["arm"].to_pylist()]
    assert "do not match the arms given" in refused(save(put(trial, "p", p)), columns)


def test_shares_are_those_of_weighted_rows(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    """Every second control row is gone, and the others stand for two."""
    none = np.array(trial["arm"].to_pylist()) == "none"
    kept = ~none | (np.cumsum(none) % 2 == 0)
    path = save(put(trial, "w", np.where(none, 2.0, 1.0)).filter(pa.array(kept)))
    assert "do not match" in refused(path, columns)
    read_trial(path, replace(columns, weight="w"))


def test_shares_are_compared_before_rows_leave(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    arm = trial["arm"].to_pylist()
    spend = [None if a == "none" else s for a, s in zip(arm, trial["spend"].to_pylist(), strict=True)]
    path = save(put(trial, "spend", spend))
    assert len(read_trial(path, columns, (1, 0, 0), exclude=["missing_outcome"]).splits["train"]) == 288
    wrong = replace(columns, propensity=(0.25, 0.25, 0.5))
    assert "do not match" in refused(path, wrong, exclude=["missing_outcome"])


# Nulls


def test_nulls_are_filled_where_that_is_said(
    trial: pa.Table, columns: TableColumns, save: Save, tmp_path: Path
) -> None:
    gone = np.arange(600) % 3 == 0
    age, score = trial["age"].to_pylist(), trial["score"].to_numpy().copy()
    score[1] = NAN
    table = put(put(trial, "age", [None if g else a for g, a in zip(gone, age, strict=True)]), "score", score)
    path = save(table)
    assert "column 'age' has 200 null, NaN or infinite entries of 600, the first in row 0" in refused(path, columns)
    rules = replace(columns, nulls={"age": "mean", "score": -2}, null_flags=("age",))
    splits, schema = read_rct(path, rules, (0.5, 0.25, 0.25))
    assert schema.dense == ("age", "score", "age_is_null")
    assert schema.dense_columns == ("age", "score")
    trained = set(splits["train"].user.tolist())
    seen = [a for a, g, u in zip(age, gone, trial["uid"].to_pylist(), strict=True) if not g and u in trained]
    mean = sum(seen) / len(seen)
    assert (schema.nulls[0].value, schema.nulls[1].value) == (pytest.approx(mean), -2)
    rows, _ = read_rct(path, rules, (1, 0, 0), schema=schema)
    dense = rows["train"].dense
    assert dense[:, 0].tolist() == pytest.approx([mean if g else a for g, a in zip(gone, age, strict=True)])
    assert dense[:, 2].tolist() == gone.astype(float).tolist()
    assert dense[1, 1] == -2
    # Filling by the mean leaves it in place.
    assert DataStatistics.from_table(splits["train"], schema).dense_mean[0] == pytest.approx(mean, rel=1e-6)
    # Users to be scored are filled by what training has seen.
    users, _ = read_users(path, schema, "uid")
    assert torch.equal(users.dense, dense)
    write_users(rows["train"], schema, tmp_path / "users.parquet")
    again, _ = read_users(tmp_path / "users.parquet", schema)
    assert torch.equal(again.dense, dense)
    assert pyarrow.parquet.read_table(tmp_path / "users.parquet")["age"].null_count == 200


def test_the_split_does_not_depend_on_the_fill(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(put(trial, "age", [None if i % 4 == 0 else 30.0 + i for i in range(600)]))
    columns = replace(columns, user=None)
    a, b = (read_rct(path, replace(columns, nulls={"age": fill}))[0] for fill in (0, "mean"))
    assert torch.equal(a["val"].user, b["val"].user)


def test_infinite_and_absent_numbers_are_refused_all_the_same(
    trial: pa.Table, columns: TableColumns, save: Save
) -> None:
    columns = replace(columns, nulls={"score": "mean"})
    message = refused(save(put(trial, "score", [0.0, INF, None, *[1.0] * 597])), columns)
    assert "column 'score' has 1 infinite entries of 600, the first in row 1" in message
    message = refused(save(put(trial, "score", pa.nulls(600, pa.float32()))), columns)
    assert "column 'score' has no number in the training split" in message


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"nulls": {"city": "mean"}}, "nulls of 'city'; allowed: age, score"),
        ({"nulls": {"age": "median"}}, "nulls of 'age' filled with 'median'"),
        ({"nulls": {"age": NAN}}, "nulls of 'age' filled with nan"),
        ({"nulls": {"age": 0}, "null_flags": ("score",)}, "null_flags of 'score'; allowed: age"),
        ({"dense": ("age", "age_is_null"), "nulls": {"age": 0}, "null_flags": ("age",)}, "'age_is_null'"),
        ({"cost_formula": "2"}, "cost='paid' and cost_formula='2'"),
        ({"levels": (0, 1, 2)}, "without cost_formula"),
        ({"cost": None, "cost_formula": "level", "levels": (0, 1)}, "levels=[0, 1] for 3 arms"),
        ({"strata": ("city",)}, "strata=['city'] with propensity='p'"),
    ],
)
def test_parts_that_do_not_fit(change: dict[str, Any], found: str, columns: TableColumns) -> None:
    with pytest.raises(InputError) as caught:
        replace(columns, **change)
    assert found in str(caught.value)


def test_by_the_data_module(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    settings = {name: getattr(columns, name) for name in columns.__dataclass_fields__}
    gaps = put(put(trial, "age", [None, *trial["age"].to_pylist()[1:]]), "w", [1.0, 3.0] * 300)
    data = TableRCTDataModule(str(save(gaps)), **settings | {"nulls": "mean", "weight": "w"})
    data.setup()
    assert {f.column for f in data.schema.nulls} == {"age", "score"}
    batch = next(iter(data.val_dataloader()))
    assert batch.weight is not None
    assert data.val.weight is not None
    assert torch.equal(batch.weight, data.val.weight[: len(batch)])
    with pytest.raises(InputError, match="nulls='drop'; allowed: refuse, mean"):
        TableRCTDataModule(str(save(gaps)), **settings | {"nulls": "drop"})
