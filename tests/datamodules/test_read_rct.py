"""A trial read from csv, csv.gz, Parquet and folders of Parquet; its split, vocabularies and outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from lightning_budget.data.columns import TableColumns
from lightning_budget.data.trial import SPLITS, read_rct
from lightning_budget.data.users import read_users, write_users
from lightning_budget.schema import UNKNOWN, DataSchema, SparseFeature
from lightning_budget.table import IdList, RCTTable

Save = Callable[..., Path]


def same(a: RCTTable, b: RCTTable) -> None:
    for name in ("user", "dense", "treatment", "value", "cost", "propensity"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert list(a.ids) == list(b.ids)
    for x, y in zip(a.ids.values(), b.ids.values(), strict=True):
        if isinstance(x, IdList):
            assert isinstance(y, IdList)
            assert torch.equal(x.values, y.values)
            assert torch.equal(x.offsets, y.offsets)
        else:
            assert torch.equal(x, y)  # type: ignore[arg-type]


def whole(splits: dict[str, RCTTable]) -> set[tuple[float, ...]]:
    return {
        (
            int(t.user[i]),
            float(t.dense[i, 0]),
            int(t.treatment[i]),
            float(t.value[i]),
            float(t.cost[i]),
            float(t.propensity[i]),
        )
        for t in splits.values()
        for i in range(len(t))
    }


def test_columns_arrive_as_they_stand_in_the_file(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    splits, schema = read_rct(save(trial), columns, split=(1, 0, 0))
    train, raw = splits["train"], trial.to_pydict()
    assert [len(splits[s]) for s in SPLITS] == [trial.num_rows, 0, 0]
    assert train.user.tolist() == raw["uid"]
    assert torch.equal(train.dense, torch.tensor([raw["age"], raw["score"]], dtype=torch.float32).T)
    assert [columns.arms[t] for t in train.treatment] == raw["arm"]
    assert train.value.tolist() == pytest.approx(raw["spend"])
    assert train.cost.tolist() == raw["paid"]
    assert train.propensity.tolist() == raw["p"]
    city, level, viewed = schema.sparse
    assert city.vocabulary == ("Bern", "Bonn", "Oslo", "Rome")
    assert level.vocabulary == tuple(str(i) for i in range(1, 13))  # by size, not 1, 10, 11, …
    assert [city.vocabulary[i - 1] for i in train.ids["city"]] == raw["city"]  # type: ignore[union-attr]
    lists = train.ids["viewed"]
    assert isinstance(lists, IdList)
    assert viewed.is_list
    assert viewed.vocabulary is not None
    decoded = [
        [viewed.vocabulary[i - 1] for i in lists.values[a:b]]
        for a, b in zip(lists.offsets, lists.offsets[1:], strict=False)
    ]
    assert decoded == raw["viewed"]
    assert any(not v for v in decoded)
    assert schema.known_cost == (None, None, None)
    assert DataSchema.from_dict(schema.to_dict()) == schema


@pytest.mark.parametrize("name", ["trial.csv", "trial.csv.gz"])
@pytest.mark.parametrize("user", ["uid", None])
def test_csv_and_parquet_give_the_same_tables(
    name: str, user: str | None, trial: pa.Table, columns: TableColumns, save: Save
) -> None:
    columns = replace(columns, lists=(), user=user)
    trial = trial.drop_columns(["viewed"])
    a, schema_a = read_rct(save(trial), columns)
    b, schema_b = read_rct(save(trial, name), columns)
    assert schema_a == schema_b
    for split in SPLITS:
        same(a[split], b[split])


def test_folder_equals_file(trial: pa.Table, columns: TableColumns, save: Save, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for i in range(3):
        pyarrow.parquet.write_table(trial.slice(i * 200, 200), tmp_path / "parts" / f"{i}.parquet")
    a, schema_a = read_rct(save(trial), columns)
    b, schema_b = read_rct(tmp_path / "parts", columns)
    assert schema_a == schema_b
    for split in SPLITS:
        same(a[split], b[split])


def test_pandas_categories_and_narrow_types(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    narrow = trial.set_column(1, "arm", trial["arm"].dictionary_encode()).set_column(
        9, "city", trial["city"].dictionary_encode()
    )
    narrow = narrow.set_column(6, "age", trial["age"].cast(pa.int8())).set_column(
        10, "level", trial["level"].cast(pa.float64())
    )
    a, b = read_rct(save(trial), columns), read_rct(save(narrow, "narrow.parquet"), columns)
    assert a[1] == b[1]
    same(a[0]["train"], b[0]["train"])


def test_users_never_straddle_and_shares_hold(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(trial)
    splits, _ = read_rct(path, columns, split=(0.5, 0.25, 0.25))
    users = [set(splits[s].user.tolist()) for s in SPLITS]
    assert not users[0] & users[1] | users[0] & users[2] | users[1] & users[2]
    assert len(set.union(*users)) == len(set(trial["uid"].to_pylist()))
    assert [len(u) / 150 for u in users] == pytest.approx([0.5, 0.25, 0.25], abs=0.12)
    assert len(whole(splits)) == trial.num_rows
    again, _ = read_rct(path, columns, split=(0.5, 0.25, 0.25))
    other, _ = read_rct(path, columns, split=(0.5, 0.25, 0.25), split_seed=1)
    assert torch.equal(again["test"].user, splits["test"].user)
    assert not torch.equal(other["test"].user, splits["test"].user)


def test_a_user_keeps_its_split_when_others_join(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    few, _ = read_rct(save(trial.slice(0, 300), "few.parquet"), columns)
    many, _ = read_rct(save(trial), columns)
    for split in SPLITS:
        assert set(few[split].user.tolist()) <= set(many[split].user.tolist())


@pytest.mark.parametrize("label", ["u{}", "{}"])
def test_text_users(label: str, trial: pa.Table, columns: TableColumns, save: Save) -> None:
    text = trial.set_column(0, "uid", pa.array([label.format(u) for u in trial["uid"].to_pylist()]))
    splits, _ = read_rct(save(text), columns, split=(1, 0, 0))
    user = splits["train"].user.tolist()
    pairs = set(zip(user, trial["uid"].to_pylist(), strict=True))
    assert len(pairs) == len(set(user)) == len(set(trial["uid"].to_pylist()))  # one to one
    if label == "{}":
        assert user == trial["uid"].to_pylist()  # digits are the number they spell


def test_without_users_equal_features_stay_together(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    # Every row four times, with other outcomes and arms.
    twins = pa.concat_tables([trial, trial.set_column(2, "spend", pa.array(np.arange(600.0)))] * 2)
    splits, _ = read_rct(save(twins), replace(columns, user=None))
    origin = [set((splits[s].user % 600).tolist()) for s in SPLITS]
    assert [len(splits[s]) for s in SPLITS] == [4 * len(o) for o in origin]
    assert sum(map(len, origin)) == 600
    assert [len(o) / 600 for o in origin] == pytest.approx([0.6, 0.2, 0.2], abs=0.07)


def test_each_feature_counts_in_telling_rows_apart(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    one = pa.concat_tables([trial.slice(5, 1)] * 400)
    for i, name in enumerate(one.column_names):
        if name == "viewed":
            varied = pa.array([["c1"] * (j // 2) + ["c2"] * (j % 2) for j in range(400)])
        elif name == "city":
            varied = pa.array([f"town {j}" for j in range(400)])
        elif name in ("age", "score", "level"):
            varied = pa.array(np.arange(400))
        else:
            continue
        splits, _ = read_rct(save(one.set_column(i, name, varied)), replace(columns, user=None), check_shares=0)
        assert all(len(splits[s]) > 40 for s in SPLITS), name


def test_vocabulary_is_learned_on_the_training_split_only(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    own = trial.set_column(9, "city", pa.array([f"town of {u}" for u in trial["uid"].to_pylist()]))
    own = own.set_column(11, "viewed", pa.array([[f"seen by {u}"] for u in trial["uid"].to_pylist()]))
    splits, schema = read_rct(save(own), columns)
    trained = set(splits["train"].user.tolist())
    for feature in (schema.sparse[0], schema.sparse[2]):
        assert feature.vocabulary is not None
        assert {int(v.split()[-1]) for v in feature.vocabulary} == trained
        assert feature.num_embeddings == len(trained) + 1
    for split in ("val", "test"):
        assert splits[split].ids["city"].eq(UNKNOWN).all()  # type: ignore[union-attr]
        assert splits[split].ids["viewed"].values.eq(UNKNOWN).all()  # type: ignore[union-attr]
    assert splits["train"].ids["city"].min() > UNKNOWN  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["trial.csv", "trial.parquet"])
def test_missing_labels_are_unknown(name: str, trial: pa.Table, columns: TableColumns, save: Save) -> None:
    city = trial["city"].to_pylist()
    city[:50] = [None] * 25 + [""] * 25
    gaps = trial.set_column(9, "city", pa.array(city)).drop_columns(["viewed"])
    splits, schema = read_rct(save(gaps, name), replace(columns, lists=()), split=(1, 0, 0))
    assert schema.sparse[0].vocabulary == ("Bern", "Bonn", "Oslo", "Rome")
    ids = splits["train"].ids["city"]
    assert isinstance(ids, torch.Tensor)
    assert (ids == UNKNOWN).nonzero().flatten().tolist() == list(range(50))


def test_null_lists_are_empty_and_null_entries_unknown(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    viewed = trial["viewed"].to_pylist()
    viewed[:3] = [None, [], ["c1", None]]
    path = save(trial.set_column(11, "viewed", pa.array(viewed, pa.list_(pa.string()))))
    lists = read_rct(path, columns, split=(1, 0, 0))[0]["train"].ids["viewed"]
    assert isinstance(lists, IdList)
    assert lists.offsets[:4].tolist() == [0, 0, 0, 2]
    assert lists.values[1] == UNKNOWN
    assert lists.values[0] != UNKNOWN


def test_constant_costs_and_propensities(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(trial)
    constant = replace(columns, cost=None, cost_per_arm=(0.0, 1.0, 2.5), propensity=(0.5, 0.25, 0.25))
    a, schema = read_rct(path, constant)
    b, _ = read_rct(path, columns)
    same(a["train"], b["train"])
    assert schema.known_cost == (0.0, 1.0, 2.5)
    uniform, _ = read_rct(path, replace(columns, propensity="uniform"), check_shares=0)
    assert uniform["train"].propensity.unique().tolist() == pytest.approx([1 / 3])
    partly, schema = read_rct(path, replace(columns, cost_per_arm=(0.0, None, None)))
    same(partly["train"], b["train"])
    assert schema.known_cost == (0.0, None, None)


def test_boolean_and_binary_outcomes(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    binary = replace(columns, value="member", value_kind="binary", dense=("age",))
    splits, schema = read_rct(save(trial), binary, split=(1, 0, 0))
    assert splits["train"].value.tolist() == [float(m) for m in trial["member"].to_pylist()]
    assert schema.value_kind == "binary"


def test_a_given_schema_keeps_its_rows(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    _, schema = read_rct(save(trial), columns)
    fewer = trial.filter(pa.compute.not_equal(trial["city"], "Bern")).slice(0, 200)
    fewer = fewer.set_column(9, "city", pa.array(["Paris", *fewer["city"].to_pylist()[1:]]))
    path = save(fewer, "later.parquet")
    splits, kept = read_rct(path, columns, split=(1, 0, 0), schema=schema)
    assert kept is schema
    ids = splits["train"].ids["city"]
    assert ids[0] == UNKNOWN  # type: ignore[index]
    assert ids[1:].tolist() == [{"Bonn": 2, "Oslo": 3, "Rome": 4}[c] for c in fewer["city"].to_pylist()[1:]]  # type: ignore[index]


def test_users_file_round_trip(trial: pa.Table, columns: TableColumns, save: Save, tmp_path: Path) -> None:
    splits, schema = read_rct(save(trial), columns)
    path = tmp_path / "users.parquet"
    write_users(splits["test"], schema, path)
    table, ids = read_users(path, schema)
    blank = replace(
        splits["test"],
        treatment=torch.zeros_like(table.treatment),
        value=torch.zeros(len(table)),
        cost=torch.zeros(len(table)),
        propensity=torch.ones(len(table)),
    )
    same(table, blank)
    assert ids.to_pylist() == splits["test"].user.tolist()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    write_users(splits["train"], schema, path)  # replaces
    assert len(read_users(path, schema)[0]) == len(splits["train"])


def test_users_file_with_numbered_ids(tmp_path: Path) -> None:
    # The id feature is the user column itself: id u stands in table row u + 1.
    schema = DataSchema(("a", "b"), ("x",), (SparseFeature("user_id", 6), SparseFeature("seen", 4, is_list=True)))
    user = torch.tensor([4, 0, 2, 9])
    table = RCTTable(
        user=user,
        dense=torch.tensor([[0.5], [1.5], [2.5], [3.5]]),
        ids={
            "user_id": torch.tensor([5, 1, 3, UNKNOWN]),
            "seen": IdList(torch.tensor([1, UNKNOWN, 3]), torch.tensor([0, 0, 2, 3, 3])),
        },
        treatment=torch.zeros(4, dtype=torch.int64),
        value=torch.zeros(4),
        cost=torch.zeros(4),
        propensity=torch.ones(4),
    )
    write_users(table, schema, tmp_path / "users.parquet")
    written = pyarrow.parquet.read_table(tmp_path / "users.parquet").to_pydict()
    assert written == {"user_id": [4, 0, 2, 9], "x": [0.5, 1.5, 2.5, 3.5], "seen": [[], [0, None], [2], []]}
    same(read_users(tmp_path / "users.parquet", schema)[0], table)


def test_text_ids_of_users_come_back_as_they_stand(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    _, schema = read_rct(save(trial), columns)
    text = trial.append_column("user_id", pa.array([f"u{i:03}" for i in range(trial.num_rows)]))
    table, ids = read_users(save(text, "users.parquet"), schema)
    assert ids.to_pylist() == [f"u{i:03}" for i in range(trial.num_rows)]
    assert len(table.user.unique()) == trial.num_rows


@pytest.mark.parametrize("text", [False, True])
def test_users_who_are_in_no_vocabulary_keep_a_name(
    text: bool, trial: pa.Table, columns: TableColumns, save: Save, tmp_path: Path
) -> None:
    """The user column as a feature: its vocabulary is that of training's users, and those of other splits have none."""
    if text:
        names = pa.array([f"u{u}" for u in trial["uid"].to_pylist()])
        trial = trial.set_column(trial.schema.get_field_index("uid"), "uid", names)
    splits, schema = read_rct(save(trial), replace(columns, categorical=("uid", "city")))
    for split in ("train", "test"):
        write_users(splits[split], schema, tmp_path / "users.parquet", "uid")
        written = pyarrow.parquet.read_table(tmp_path / "users.parquet")["uid"]
        assert written.null_count == 0
        assert len(written.unique()) == splits[split].user.unique().numel()
        again, _ = read_users(tmp_path / "users.parquet", schema, "uid")
        assert torch.equal(again.ids["uid"], splits[split].ids["uid"])  # type: ignore[arg-type]
        assert bool((again.ids["uid"] > 0).all()) == (split == "train")  # type: ignore[operator]
