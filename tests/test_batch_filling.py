"""Filling repeats rows and marks every copy, and nothing but the copies."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_trials import id_lists, random_table

from lightning_budget.batch import RCTBatch

TENSORS = [f.name for f in fields(RCTBatch) if f.name not in ("sparse", "row")]


def assert_repeats(batch: RCTBatch, source: RCTBatch) -> None:
    index = [i % len(source) for i in range(len(batch))]
    for name in TENSORS:
        assert torch.equal(getattr(batch, name), getattr(source, name)[index]), name
    lists = id_lists(source)
    assert id_lists(batch) == {key: [users[i] for i in index] for key, users in lists.items()}


@given(rows=st.integers(1, 9), more=st.integers(0, 20), seed=st.integers(0, 5))
def test_padded_keeps_the_rows_and_marks_the_copies(rows: int, more: int, seed: int) -> None:
    batch = random_table(rows + 2, seed=seed, oracle=True, weights=True).batch(torch.arange(2, rows + 2))
    padded = batch.padded(rows + more)
    assert padded.row.tolist() == [*range(2, rows + 2), *[-1] * more]
    assert_repeats(padded, batch)


@given(rows=st.integers(1, 9), n=st.integers(1, 20), seed=st.integers(0, 5))
def test_filling_marks_every_row(rows: int, n: int, seed: int) -> None:
    batch = random_table(rows, seed=seed, oracle=True, weights=True).batch(torch.arange(rows))
    filling = batch.filling(n)
    assert filling.row.tolist() == [-1] * n
    assert_repeats(filling, batch)
    assert batch.row.tolist() == list(range(rows))  # the source is as it was


def test_filling_stays_filling() -> None:
    batch = random_table(4).batch(torch.tensor([2, -1 - 3]))
    assert batch.padded(5).row.tolist() == [2, -1, -1, -1, -1]


def test_without_id_features() -> None:
    batch = replace(random_table(3).batch(torch.arange(3)), sparse=None)
    assert batch.padded(5).sparse is None
    assert len(batch.filling(4)) == 4


def test_where_every_list_is_empty() -> None:
    batch = random_table(3, lists=False).batch(torch.arange(3))
    assert id_lists(batch.padded(5))["viewed"] == [[]] * 5


def test_refuses() -> None:
    table = random_table(3)
    with pytest.raises(ValueError, match="3 rows cannot be filled up to 2"):
        table.batch(torch.arange(3)).padded(2)
    empty = table.batch(torch.arange(0))
    for make in (empty.filling, empty.padded):
        with pytest.raises(ValueError, match="nothing to repeat"):
            make(1)
    assert len(empty.padded(0)) == 0
