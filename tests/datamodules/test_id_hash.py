"""Hashed and managed ids: rows that never drift, that no partition changes, and how many ids share one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from datamodules import TableRCTDataModule
from lightning_budget.data import collisions
from lightning_budget.data.collisions import (
    Collisions,
    DistinctSketch,
    collisions_in,
    collisions_of,
    expected_sharing,
    told,
)
from lightning_budget.data.column import Column
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.files import File
from lightning_budget.data.id_hash import Identities, encode, identities, stand_ins
from lightning_budget.data.ids import rows_of
from lightning_budget.data.trial import read_rct, read_trial
from lightning_budget.data.users import read_users, write_users
from lightning_budget.errors import InputError
from lightning_budget.hashing import hash_ids, unhash_ids
from lightning_budget.schema import UNKNOWN, DataSchema, SparseFeature
from lightning_budget.table import IdList

Save = Callable[..., Path]
USER = SparseFeature("user_id", 1_000_001, ids="hashed")
MANAGED = SparseFeature("user_id", 8, ids="managed")

KNOWN = {  # label: row of 1,000,001, managed id; of the feature user_id
    "0": (957_410, 4_836_906_815_383_478_704),
    "1": (259_841, 467_773_870_187_629_920),
    "17": (343_284, 4_549_125_448_420_171_641),
    "-1": (32_598, 7_958_778_410_820_516_298),
    "9223372036854775807": (238_461, 6_904_287_016_830_619_230),
    "-9223372036854775808": (314_246, 5_254_965_767_496_657_122),
    "18446744073709551615": (32_598, 7_958_778_410_820_516_298),  # −1 modulo 2⁶⁴
    "18446744073709551616": (445_722, 7_690_276_592_756_722_860),
    "017": (204_883, 4_400_496_521_981_602_441),
    "a": (700_538, 7_707_093_278_041_350_268),
    "user-000000000001": (955_985, 9_087_007_828_415_977_992),
    "Zürich": (581_271, 894_608_740_332_790_635),
    " 17": (937_630, 2_337_825_532_354_468_814),
    "1.0": (791_994, 5_460_815_552_294_895_996),
}
"""Rows that checkpoints and servers rely on: these numbers may never change."""


def column(data: pa.Array | pa.ChunkedArray) -> Column:
    return Column("f.parquet", "user_id", data)


def rows(data: pa.Array | pa.ChunkedArray, feature: SparseFeature = USER) -> list[int]:
    return rows_of(column(data), feature).tolist()


def by_the_docstring(label: str, feature: SparseFeature) -> int:
    """As a server would compute it, from the lines in the module's docstring."""
    whole = label.isascii() and label.removeprefix("-").isdecimal() and str(int(label)) == label
    if whole and -(2**63) <= int(label) < 2**64:
        identity = int(label) % 2**64
    else:
        identity = xxhash.xxh3_64_intdigest(label.encode())
    key = hashlib.blake2b(f"0/ids of {feature.name}".encode(), digest_size=8).digest()
    x = (identity * 0x9E3779B97F4A7C15 + int.from_bytes(key, "little")) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    x ^= x >> 31
    return x >> 1 if feature.ids == "managed" else 1 + x % (feature.num_embeddings - 1)


def test_known_answers() -> None:
    labels = pa.array(list(KNOWN))
    assert rows(labels) == [row for row, _ in KNOWN.values()]
    assert rows(labels, MANAGED) == [i for _, i in KNOWN.values()]
    assert xxhash.xxh3_64_intdigest(b"") == 0x2D06800538D394C2  # of XXH3's own test vectors
    assert xxhash.xxh3_64_intdigest(b"abc") == 0x78AF5F94892F3950


@pytest.mark.parametrize("feature", [USER, MANAGED, SparseFeature("city", 2, ids="hashed")])
def test_the_formula_of_the_docstring(feature: SparseFeature) -> None:
    rng = np.random.default_rng(0)
    alphabet = np.array(list("0123456789-+ ._azÄß中🙂\x00٣"))
    labels = ["".join(rng.choice(alphabet, n)) for n in rng.integers(1, 40, 300)]
    labels += [
        f"{'-' * int(rng.integers(2))}{'0' * int(rng.integers(2))}{int(rng.integers(2**62))}" for _ in range(300)
    ]
    labels += [str(s * 2**e + d) for e in (0, 31, 59, 60, 62, 63, 64, 65) for s in (-1, 1) for d in (-1, 0, 1)]
    labels += [str(10**n) for n in range(16, 22)] + ["-0", "00", "-", "--1", "1\n"]
    assert rows(pa.array(labels), feature) == [by_the_docstring(label, feature) for label in labels]


@pytest.mark.parametrize("feature", [USER, MANAGED])
def test_a_number_and_its_text_are_one_label(feature: SparseFeature) -> None:
    numbers = [0, 17, None, -3, 2**53, 2**31, 17]
    texts = [None if n is None else str(n) for n in numbers]
    expected = rows(pa.array(numbers, pa.int64()), feature)
    assert expected[2] == UNKNOWN
    assert expected[1] == expected[6]
    assert len(set(expected)) == 6
    for data in (
        pa.array(texts),
        pa.array(texts, pa.large_string()),
        pa.array(texts, pa.string_view()),
        pa.array([None if t is None else t.encode() for t in texts]),
        pa.array(texts).dictionary_encode(),
        pa.array(numbers, pa.int64()).dictionary_encode(),
        pa.array([float("nan") if n is None else float(n) for n in numbers]),
        pa.chunked_array([pa.array(texts[:3]), pa.array(texts[3:])]),
        pa.chunked_array([pa.array(texts[:3]).dictionary_encode(), pa.array(texts[3:]).dictionary_encode()]),
    ):
        assert rows(data, feature) == expected, data.type
    small = [1, 0, 200]
    assert rows(pa.array(small, pa.uint8()), feature) == rows(pa.array(small, pa.int16()), feature)
    assert rows(pa.array([2**64 - 1], pa.uint64()), feature) == rows(pa.array([str(2**64 - 1)]), feature)


def test_no_label_is_the_unknown_row_and_nothing_else_is() -> None:
    for data in (pa.array(["", None]), pa.array([None, None]), pa.array([None, float("nan")]), pa.array([b"", None])):
        assert rows(data) == rows(data, MANAGED) == [UNKNOWN, UNKNOWN]
    assert rows(pa.array([], pa.string())) == rows(pa.chunked_array([], pa.int64())) == []
    everyone = rows(pa.array(range(5_000)), SparseFeature("user_id", 4, ids="hashed"))
    assert set(everyone) == {1, 2, 3}


@pytest.mark.parametrize("data", [pa.array([0.5]), pa.array([[1]]), pa.array([float("inf")]), pa.array([1e300, 0.5])])
def test_what_is_no_label_is_refused(data: pa.Array) -> None:
    with pytest.raises(InputError, match=r"f.parquet: column 'user_id'"):
        rows(data)


def test_no_partition_and_no_neighbour_changes_a_row() -> None:
    """Also where other labels of the file are of another kind: "17" beside "x" is the number still."""
    rng = np.random.default_rng(0)
    labels = [str(i) if i % 3 else f"x{i}" for i in rng.integers(0, 400, 2_000)]
    whole = rows(pa.array(labels))
    cuts = [0, 1, 700, 701, 1_500, 2_000]
    parts = [rows(pa.array(labels[a:b])) for a, b in pairwise(cuts)]
    assert list(chain.from_iterable(parts)) == whole
    of_label = dict(zip(labels, whole, strict=True))
    assert all(rows(pa.array([label]))[0] == row for label, row in list(of_label.items())[:20])


def test_rows_are_spread_evenly_and_differently_by_feature() -> None:
    table = SparseFeature("user_id", 101, ids="hashed")
    for ids in (np.arange(20_000), np.arange(20_000) * 4096, np.arange(20_000) << 40):
        count = np.bincount(rows(pa.array(ids), table), minlength=101)[1:]
        assert stats.chisquare(count).pvalue > 1e-4
    a, b = (np.array(rows(pa.array(range(20_000)), replace(table, name=n))) for n in ("user_id", "city"))
    assert (a == b).mean() == pytest.approx(1 / 100, abs=4 * (0.01 * 0.99 / 20_000) ** 0.5)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_the_bijection_undone(ids: list[int]) -> None:
    x = np.array(ids, np.uint64)
    assert np.array_equal(unhash_ids(hash_ids(x, 3, "purpose"), 3, "purpose"), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("feature", [replace(USER, num_embeddings=50), MANAGED])
def test_stand_ins_have_the_row_and_are_as_many_as_the_groups(feature: SparseFeature) -> None:
    encoded = encode(identities(column(pa.array([f"label {i}" for i in range(500)]))), feature)
    numbers = stand_ins(encoded, feature, np.arange(500))
    assert len(set(numbers.tolist())) == 500
    assert rows(pa.array(numbers), feature) == encoded.tolist()


def distinct(n: int, seed: int = 0) -> Identities:
    values = np.unique(np.random.default_rng(seed).integers(0, 2**63, n).astype(np.uint64))
    return Identities(values, np.ones(len(values), bool))


@pytest.mark.parametrize(("ids", "table"), [(3_000, 1_001), (3_000, 100_001), (1, 2), (5, 2)])
def test_counted_collisions_are_those_of_a_dictionary_and_near_the_expected_share(ids: int, table: int) -> None:
    feature = SparseFeature("user_id", table, ids="hashed")
    labels = distinct(ids)
    twice = Identities(np.concatenate([labels.values, labels.values]), np.ones(2 * len(labels.values), bool))
    found = collisions_of(twice, feature)
    on_row = Counter(encode(labels, feature).tolist())
    shared = sum(n for n in on_row.values() if n > 1) / ids
    assert found == Collisions("user_id", table - 1, ids, expected_sharing(ids, table - 1), shared)
    # The count of ids that share a row has about twice a binomial's variance: they come in pairs.
    p = found.expected
    assert shared == pytest.approx(p, abs=4 * (2 * p * (1 - p) / ids) ** 0.5 + 1e-12)


def test_only_labels_of_the_rows_asked_for_are_counted() -> None:
    lists = pa.array([["a", "b", None], None, ["c"], ["a", "d", "e", ""]])
    columns = {"viewed": lists, "city": pa.array(["x", "y", None, "y"])}
    file = File({name: Column("f.parquet", name, data) for name, data in columns.items()})
    features = (SparseFeature("viewed", 9, True, ids="managed"), SparseFeature("city", 9, ids="hashed"))
    for chosen, counts in (([0], [2, 1]), ([1, 2], [1, 1]), ([0, 3], [4, 2]), ([1], [0, 1])):
        found = collisions_in(file, (*features, SparseFeature("other", 2)), np.isin(np.arange(4), chosen))
        assert [c.distinct for c in found] == counts
        assert [c.ids for c in found] == ["managed", "hashed"]


def test_the_expected_share_by_drawing() -> None:
    assert expected_sharing(1, 10) == expected_sharing(0, 1) == 0
    assert expected_sharing(2, 1) == 1
    drawn = np.random.default_rng(1).integers(0, 20, (20_000, 8))
    share = np.mean([(drawn[:, :1] == drawn[:, 1:]).any(1)])
    assert expected_sharing(8, 20) == pytest.approx(share, abs=4 * (0.25 / 20_000) ** 0.5)


def test_the_sketch_counts_a_stream_in_any_order_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = distinct(60_000, seed=1)
    parts = [Identities(v, np.ones(len(v), bool)) for v in np.array_split(labels.values, 7)]
    sketches = [DistinctSketch(1024) for _ in range(2)]
    for i, part in enumerate([*parts, *parts[:3]]):
        sketches[i % 2].update(part)
    sketches[0].merge(DistinctSketch.from_state(sketches[1].state_dict()))
    whole = DistinctSketch(1024)
    whole.update(labels)
    assert np.array_equal(sketches[0].smallest, whole.smallest)
    assert len(whole.smallest) == 1024
    assert whole.distinct == pytest.approx(60_000, rel=4 / 1022**0.5)
    few = DistinctSketch(1024)
    few.update(Identities(labels.values[:900], np.arange(900) % 3 > 0))
    assert few.distinct == 600

    exact = collisions_of(labels, USER)
    monkeypatch.setattr(collisions, "COUNTED_ENTRIES", 1_000)
    estimated = collisions_of(labels, USER)
    assert estimated.counted is None
    assert estimated.share == pytest.approx(exact.share, rel=0.1)
    assert "about" in str(estimated)


def test_a_trial_with_hashed_and_managed_features(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(trial)
    ours = replace(
        columns, hashed={"level": 6, "viewed": 50}, managed={"uid": 40}, categorical=("city", "level", "uid")
    )
    found = read_trial(path, ours)
    schema = found.schema
    assert [f.ids for f in schema.sparse] == ["listed", "hashed", "managed", "hashed"]
    assert [f.num_embeddings for f in schema.sparse[1:]] == [6, 40, 50]
    assert DataSchema.from_dict(schema.to_dict()) == schema

    for split in found.splits.values():
        users, level = split.ids["uid"], split.ids["level"]
        assert isinstance(users, torch.Tensor)
        assert isinstance(level, torch.Tensor)
        assert users.tolist() == rows(pa.array(split.user.numpy()), schema.sparse[2])
        assert 1 <= int(level.min()) <= int(level.max()) <= 5
    # A label that only other splits have is no stranger to a hash.
    lists = found.splits["test"].ids["viewed"]
    assert isinstance(lists, IdList)
    assert set(lists.values.tolist()) <= set(rows(pa.array([f"c{j}" for j in range(9)]), schema.sparse[3]))

    of = {c.feature: c for c in found.collisions}
    trained = found.splits["train"].user
    assert of["level"].distinct == 12
    # Twelve labels in five rows, and two of them alone.
    assert of["level"].counted == 10 / 12
    assert of["uid"].distinct == len(trained.unique())
    assert of["uid"].share == pytest.approx(1 - 39 / len(trained.unique()))
    assert of["viewed"].distinct == 9
    line = told(found.collisions)
    assert line is not None
    assert line.startswith("Ids in tables: 12 level for 5 rows: 83.33% share theirs (91.41% expected); ")
    assert " uid for 39 rows: " in line
    assert told(()) is None

    again, _ = read_rct(path, ours, schema=schema)
    assert torch.equal(again["val"].ids["uid"], found.splits["val"].ids["uid"])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="hashed and managed"):
        read_rct(path, replace(ours, hashed={"level": 7, "viewed": 50}), schema=schema)


@pytest.mark.parametrize("kind", ["hashed", "managed"])
@pytest.mark.parametrize("text", [False, True])
def test_users_come_back_with_their_rows(
    kind: str, text: bool, trial: pa.Table, columns: TableColumns, save: Save, tmp_path: Path
) -> None:
    if text:
        names = pa.array([f"u{u}" for u in trial["uid"].to_pylist()])
        trial = trial.set_column(trial.schema.get_field_index("uid"), "uid", names)
    ours = replace(columns, categorical=("uid", "city"), **{kind: {"uid": 20, "city": 9, "viewed": 4}})
    splits, schema = read_rct(save(trial), ours)
    table = splits["test"]
    write_users(table, schema, tmp_path / "users.parquet", "uid")
    again, names = read_users(tmp_path / "users.parquet", schema, "uid")
    for name, ids in table.ids.items():
        theirs = again.ids[name]
        if isinstance(ids, IdList):
            assert isinstance(theirs, IdList)
            ids, theirs = ids.values, theirs.values
        assert torch.equal(ids, theirs)  # type: ignore[arg-type]
    assert len(names.unique()) == len(table.user.unique())
    assert text or names.to_pylist() == table.user.tolist()


def test_wrong_declarations(columns: TableColumns) -> None:
    for change, error in (
        ({"hashed": {"citty": 9}}, "hashed column 'citty' is no id feature"),
        ({"managed": {"age": 9}}, "managed column 'age' is no id feature"),
        ({"hashed": {"city": 9}, "managed": {"city": 9}}, "both hashed and managed"),
        ({"hashed": {"city": 1}}, "a table of 1 rows"),
        ({"hashed": {"city": 2.5}}, r"a table of 2\.5 rows"),
        ({"managed": {"city": 9}, "eviction": "fifo"}, "eviction='fifo'"),
    ):
        with pytest.raises(InputError, match=error):
            replace(columns, **change)
    for change in ({"ids": "hashed", "vocabulary": ("a",)}, {"ids": "other"}):
        with pytest.raises(InputError, match="feature 'city' has"):
            SparseFeature("city", 2, **change)


def test_a_schema_from_before_there_were_hashes() -> None:
    state = DataSchema(("a", "b"), sparse=(SparseFeature("city", 3, vocabulary=("x", "y")),)).to_dict()
    for feature in state["sparse"]:
        del feature["ids"], feature["eviction"]
    assert DataSchema.from_dict(state).sparse[0].ids == "listed"


def test_the_data_module_tells_in_one_line(
    trial: pa.Table, columns: TableColumns, save: Save, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {k: getattr(columns, k) for k in ("treatment", "arms", "value", "cost", "propensity", "user")}
    data = TableRCTDataModule(str(save(trial)), **settings, categorical=["level"], hashed={"level": 6})
    data.setup()
    assert data.collisions[0].distinct == 12
    assert capsys.readouterr().out.count("\n") == 1
    data = TableRCTDataModule(str(save(trial)), **settings, categorical=["level"], hashed={"level": 10_000_000})
    data.setup()
    assert data.collisions[0].counted == 0
    assert capsys.readouterr().out == ""
