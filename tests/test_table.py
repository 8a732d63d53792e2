"""Columns in memory: gathering lists, collating batches, selecting and joining rows."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_trials import id_lists, random_table

from lightning_budget.table import IdList, RCTTable, concatenate

COLUMNS = [f.name for f in fields(RCTTable) if f.name != "ids"]
LISTS = st.lists(st.lists(st.integers(0, 99), max_size=5), min_size=1, max_size=12)


def jagged(users: list[list[int]]) -> IdList:
    lengths = torch.tensor([len(u) for u in users], dtype=torch.long)
    values = torch.tensor([x for u in users for x in u], dtype=torch.long)
    return IdList(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))


def plain(ids: IdList) -> list[list[int]]:
    o = ids.offsets.tolist()
    return [ids.values[a:b].tolist() for a, b in pairwise(o)]


def lists_of(table: RCTTable) -> list[list[int]]:
    viewed = table.ids["viewed"]
    assert isinstance(viewed, IdList)
    return plain(viewed)


@given(users=LISTS, data=st.data())
def test_gather_equals_a_loop(users: list[list[int]], data: st.DataObject) -> None:
    index = data.draw(st.lists(st.integers(0, len(users) - 1), max_size=20))
    values, lengths = jagged(users).gather(torch.tensor(index, dtype=torch.long))
    assert values.tolist() == [x for i in index for x in users[i]]
    assert lengths.tolist() == [len(users[i]) for i in index]
    assert values.dtype == lengths.dtype == torch.long


@given(index=st.lists(st.integers(-8, 7), max_size=20), seed=st.integers(0, 5))
def test_a_batch_holds_its_rows_and_negative_ones_repeat_a_row_as_filling(index: list[int], seed: int) -> None:
    table = random_table(8, seed=seed, oracle=True, weights=True)
    batch = table.batch(torch.tensor(index, dtype=torch.long))
    rows = [i if i >= 0 else -1 - i for i in index]
    assert batch.row.tolist() == [i if i >= 0 else -1 for i in index]
    assert len(batch) == len(index)
    for name in set(COLUMNS) - {"user"}:
        assert torch.equal(getattr(batch, name), getattr(table, name)[rows]), name
    viewed = lists_of(table)
    assert id_lists(batch) == {
        "user_id": [[int(table.ids["user_id"][i])] for i in rows],  # type: ignore[index]
        "viewed": [viewed[i] for i in rows],
    }


def test_a_table_without_ids_or_oracle_gives_batches_without() -> None:
    table = random_table(5)
    bare = RCTTable(**{name: getattr(table, name) for name in COLUMNS}, ids={})
    batch = bare.batch(torch.tensor([3, -1]))
    assert batch.sparse is None
    assert batch.true_value is None
    assert batch.true_cost is None
    assert torch.equal(batch.dense, table.dense[[3, 0]])


@given(index=st.lists(st.integers(0, 7), max_size=20))
def test_select_equals_indexing_every_column(index: list[int]) -> None:
    table = random_table(8, oracle=True, weights=True)
    part = table.select(torch.tensor(index, dtype=torch.long))
    assert len(part) == len(index)
    for name in COLUMNS:
        assert torch.equal(getattr(part, name), getattr(table, name)[index]), name
    assert part.ids["user_id"].tolist() == table.ids["user_id"][index].tolist()  # type: ignore[index, union-attr]
    viewed = lists_of(table)
    assert lists_of(part) == [viewed[i] for i in index]


@pytest.mark.parametrize("oracle", [True, False])
@pytest.mark.parametrize("sizes", [[5], [3, 4], [2, 0, 6], [0, 0, 1]])
def test_concatenate_stacks_rows(sizes: list[int], oracle: bool) -> None:
    tables = [random_table(n, seed=i, oracle=oracle) for i, n in enumerate(sizes)]
    whole = concatenate(tables)
    assert len(whole) == sum(sizes)
    assert whole.has_oracle is oracle
    for name in COLUMNS:
        columns = [getattr(t, name) for t in tables]
        joined = getattr(whole, name)
        assert joined is None if columns[0] is None else torch.equal(joined, torch.cat(columns)), name
    assert list(whole.ids) == list(tables[0].ids)
    assert whole.ids["user_id"].tolist() == [x for t in tables for x in t.ids["user_id"].tolist()]  # type: ignore[union-attr]
    assert lists_of(whole) == [user for t in tables for user in lists_of(t)]


@given(cut=st.integers(0, 9), seed=st.integers(0, 3))
def test_concatenate_undoes_select(cut: int, seed: int) -> None:
    table, rows = random_table(9, seed=seed), torch.arange(9)
    again = concatenate([table.select(rows[:cut]), table.select(rows[cut:])])
    assert lists_of(again) == lists_of(table)
    assert torch.equal(again.dense, table.dense)


def test_without_oracle_hides_the_truth_and_nothing_else() -> None:
    table = random_table(6, oracle=True, weights=True)
    shown = table.without_oracle()
    assert table.has_oracle
    assert not shown.has_oracle
    assert shown.true_cost is None
    for name in set(COLUMNS) - {"true_value", "true_cost"}:
        assert getattr(shown, name) is getattr(table, name), name
    assert shown.ids is table.ids
