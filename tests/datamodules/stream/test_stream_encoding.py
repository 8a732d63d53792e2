"""Rows encoded while they are put in order: what plain loops tell, with compiled code and without."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from streamed import COLUMNS

from lightning_budget.data.column import Column
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.ids import rows_of
from lightning_budget.data.lookup import row_type
from lightning_budget.data.splits import SplitRule, split_of
from lightning_budget.data.stream.encoding import ListSource, Source, encode, source_of, type_of
from lightning_budget.data.stream.shuffled import WindowOrder, sorted_by_batch
from lightning_budget.data.trial import learn_schema
from lightning_budget.data.trial_rows import file_of_rows, trial_rows
from lightning_budget.hashing import hashed_uniform
from lightning_budget.schema import SparseFeature
from lightning_budget.table import IdList

FAR = np.iinfo(np.int64)


@pytest.fixture(params=["0", "1"], autouse=True)
def switch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_BUDGET_COMPILED", request.param)


@pytest.mark.parametrize("batch_rows", [1, 7, 64])
def test_rows_go_to_their_batch_in_the_order_of_the_files(batch_rows: int) -> None:
    """Of more than 256 batches too, and of pieces without a row."""
    rng = np.random.default_rng(batch_rows)
    sizes, position = [300, 0, 1, 99], [1000, 7, 0, 5]
    order = rng.permutation(sum(sizes)).astype(np.int32)
    cuts = np.unique([0, *range(3, len(order), batch_rows), len(order)])
    found = WindowOrder(order, cuts)
    assert found.sizes == np.diff(cuts).tolist()
    first = np.cumsum([0, *sizes])
    held: list[list[int]] = [[] for _ in found.sizes]
    for p, n in enumerate(sizes):
        row = np.empty(n, np.int64)
        place, ends = sorted_by_batch(found.batch[first[p] : first[p + 1]], len(found.sizes), position[p], row)
        assert (row[place] - position[p]).tolist() == list(range(n))
        for rows, a, b in zip(held, ends[:-1], ends[1:], strict=True):
            rows += (row[a:b] - position[p] + first[p]).tolist()
    assert held == [np.sort(order[a:b]).tolist() for a, b in pairwise(cuts)]


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_entries_are_looked_up(kind: type) -> None:
    """Numbers outside the table stand for what is at its ends, the largest and the least ones too."""
    rng = np.random.default_rng(1)
    table, low = np.array([0, 5, 6, 7, 0], np.int32), 40
    x = rng.integers(30, 55, 200).astype(kind)
    x[:2] = np.iinfo(kind).max, np.iinfo(kind).min + 40 * (kind is np.int64)
    rows, place = rng.permutation(200)[:150].astype(np.uint32), rng.permutation(150).astype(np.uint32)
    out, plain = np.full(150, -1, np.int32), np.full(150, -1, kind)
    Source(x, table, low).put(rows, place, out)
    Source(x).put(rows, place, plain)
    wanted = [{41: 5, 42: 6, 43: 7}.get(int(v), 0) for v in x]
    for r, p in zip(rows.tolist(), place.tolist(), strict=True):
        assert (out[p], plain[p]) == (wanted[r], x[r])


def test_vectors_take_turns() -> None:
    """A column of several that lie row by row."""
    x, out = np.arange(6, dtype=np.float32), np.zeros((6, 2), np.float32)
    rows = place = np.arange(6, dtype=np.uint32)
    Source(x).put(rows, place[::-1].copy(), out[:, 1])
    assert out[:, 1].tolist() == x[::-1].tolist()
    assert not out[:, 0].any()


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("batches", "longest"), [(3, 5), (3, 30), (40, 5)])
def test_lists_keep_their_entries(known: bool, batches: int, longest: int) -> None:
    """Empty ones too, of few batches and of many, one of them without a row."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(0, longest, 60)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    entries = rng.integers(0, 9, offsets[-1]).astype(np.int32)
    table = np.array([0, 3, 1, 2, 0], np.uint8)
    rows, batch = rng.permutation(60)[:50].astype(np.uint32), rng.integers(1, batches, 50).astype(np.uint8)
    lists = ListSource(Source(entries, table, 2) if known else Source(entries), offsets)
    place, ends = sorted_by_batch(batch, batches, 0, np.empty(50, np.int64))
    found = lists.put(rows, place, batch, batches, out := np.empty(50, np.int32))
    wanted = table[np.clip(entries.astype(int) - 2, 0, 4)] if known else entries
    for b in range(batches):
        here = rows[batch == b].tolist()
        assert out[ends[b] : ends[b + 1]].tolist() == lengths[here].tolist()
        assert found.of_batch(b).tolist() == [x for r in here for x in wanted[offsets[r] : offsets[r + 1]].tolist()]


def test_pieces_are_encoded_as_tables_are() -> None:
    """Numbers of several widths, nulls, text, chunks, and slices of lists."""
    rng = np.random.default_rng(3)
    n = 120
    lists = pa.array(
        [[int(j) for j in rng.integers(0, 30, k)] for k in rng.integers(0, 4, n + 5)], pa.list_(pa.int32())
    )
    age = np.where(rng.random(n) < 0.2, np.nan, rng.random(n)).astype(np.float32)
    rows = pa.table(
        {
            "arm": pa.array(np.array(["none", "low", "high"])[rng.integers(0, 3, n)]).dictionary_encode(),
            "spend": rng.random(n).astype(np.float32),
            "paid": rng.random(n).astype(np.float32),
            "p": np.full(n, 1 / 3, np.float32),
            "age": pa.array(age, from_pandas=True),
            "score": rng.standard_normal(n),
            "uid": rng.integers(0, 50, n),
            "city": pa.array(rng.integers(-3, 4, n).astype(np.int8)),
            "level": pa.array(np.where(rng.random(n) < 0.3, None, np.array(["a", "b", ""])[rng.integers(0, 3, n)])),
            "far": rng.choice([FAR.max, FAR.min, 0, 10**12], n),
            "none": pa.array([None if x < 0 else int(x) for x in rng.integers(-2, 4, n)], pa.int64()),
            "viewed": lists.slice(5),
        }
    )
    rows = pa.concat_tables([rows.slice(0, 50), rows.slice(50)])
    columns = TableColumns(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in COLUMNS.items() if k not in ("check_shares",)}
        | {"categorical": ("city", "level", "far", "none", "uid"), "nulls": {"age": "mean"}, "null_flags": ("age",)},
        hashed={"uid": 20},
    )
    file = file_of_rows(rows, "rows")
    schema = learn_schema(file, columns, np.arange(n) % 3 > 0)
    table, found = trial_rows(file, columns, schema), encode(file, columns, schema)
    index = np.arange(n, dtype=np.uint32)

    def taken(source: Source, kind: type) -> list[float]:
        out = np.empty(n, kind)
        source.put(index, index, out)
        return out.tolist()

    for source, expected in zip(found.dense, table.dense.unbind(1), strict=True):
        assert taken(source, np.float32) == expected.tolist()
    for name, source in found.outcomes.items():
        kind = np.uint8 if name == "treatment" else np.float32
        assert taken(source, kind) == getattr(table, name).tolist()
    for name, expected in table.ids.items():
        if isinstance(expected, IdList):
            runs = found.lists[name].put(index, index, np.zeros(n, np.uint8), 1, lengths := np.empty(n, np.int32))
            assert lengths.tolist() == expected.offsets.diff().tolist()
            assert runs.of_batch(0).tolist() == expected.values.tolist()
        else:
            kind = type_of(next(f for f in schema.sparse if f.name == name))
            assert taken(found.ids[name], kind) == expected.tolist(), name


@pytest.mark.parametrize(
    ("rows", "kind"), [(256, np.uint8), (257, np.uint16), (1 << 16, np.uint16), (1 << 17, np.int32)]
)
def test_rows_of_tables_fit(rows: int, kind: type) -> None:
    """The last row of a table of so many."""
    assert row_type(rows) == kind
    feature = SparseFeature("uid", rows, vocabulary=tuple(map(str, range(rows - 1))))
    column = Column("f", "uid", pa.array([0, rows - 2, rows - 1, 7]))
    source_of(column, feature).put(*(np.arange(4, dtype=np.uint32),) * 2, out := np.empty(4, type_of(feature)))
    assert out.tolist() == [1, rows - 1, 0, 8]


def test_ids_of_managed_features_keep_their_width() -> None:
    column = Column("f", "uid", pa.array([5, 6, None, 5]))
    feature = SparseFeature("uid", 10, ids="managed")
    source, expected = source_of(column, feature), rows_of(column, feature)
    assert source.entries.tolist() == expected.tolist()
    assert source.entries.max() > 2**32


def test_split_by_hash() -> None:
    """Of negative numbers and large ones too, and of hashes on a boundary."""
    rng = np.random.default_rng(4)
    user = np.concatenate([rng.integers(FAR.min, FAR.max, 2000), np.arange(-50, 50)])
    u = hashed_uniform(user, 9, "split")
    shares = (float(u[7]), 0.9 * (1 - float(u[7])), 0.1 * (1 - float(u[7])))
    columns = TableColumns(
        **{k: tuple(v) if isinstance(v, list) else v for k, v in COLUMNS.items() if k != "check_shares"}
    )
    part = split_of(file_of_rows(pa.table({"uid": user}), "rows"), columns, SplitRule(shares, 9))
    first, second = np.cumsum(shares)[:2]
    assert part.tolist() == ((u >= first).astype(int) + (u >= second)).tolist()
    assert part[7] == 1
