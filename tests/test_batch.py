"""Batches can be cut, moved and pinned without mixing up users."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_trials import id_lists, random_batch, random_table

from lightning_budget.batch import RCTBatch, ResponsePrediction

TENSORS = [f.name for f in fields(RCTBatch) if f.name != "sparse"]
BOUND = st.none() | st.integers(-12, 12)


def oracle_batch(rows: int, seed: int = 0) -> RCTBatch:
    return random_table(rows, seed=seed, oracle=True, weights=True).batch(torch.arange(rows))


@given(rows=st.integers(0, 9), start=BOUND, stop=BOUND, seed=st.integers(0, 5))
def test_a_slice_holds_the_users_of_a_python_slice(rows: int, start: int | None, stop: int | None, seed: int) -> None:
    batch, cut = oracle_batch(rows, seed), slice(start, stop)
    part = batch[cut]
    assert len(part) == len(range(rows)[cut])
    for name in TENSORS:
        assert torch.equal(getattr(part, name), getattr(batch, name)[cut]), name
    assert id_lists(part) == {key: users[cut] for key, users in id_lists(batch).items()}


@given(rows=st.integers(1, 9), first=st.integers(0, 9), second=st.integers(0, 9))
def test_a_slice_of_a_slice(rows: int, first: int, second: int) -> None:
    batch = random_batch(rows)
    assert id_lists(batch[first:][second:]) == id_lists(batch[first + second :])
    assert torch.equal(batch[first:][second:].dense, batch[first + second :].dense)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_slices_where_every_list_is_empty(rows: int) -> None:
    batch = random_table(rows, lists=False).batch(torch.arange(rows))
    part = batch[1:4]
    assert id_lists(part)["viewed"] == [[]] * len(range(rows)[1:4])
    assert id_lists(part)["user_id"] == id_lists(batch)["user_id"][1:4]


def test_absent_columns_stay_absent() -> None:
    batch = random_batch(4)
    bare = RCTBatch(**{**{f.name: getattr(batch, f.name) for f in fields(RCTBatch)}, "sparse": None})
    for other in (bare[1:3], bare.to("cpu")):
        assert other.sparse is None
        assert other.true_value is None
        assert other.true_cost is None
        assert other.weight is None
    assert len(bare[1:3]) == 2


@pytest.mark.parametrize("rows", [slice(0, 4, 2), slice(None, None, -1), 1, [0, 1]])
def test_only_contiguous_slices(rows: object) -> None:
    with pytest.raises(TypeError, match="slice without step"):
        random_batch(4)[rows]  # type: ignore[index]


def test_to_moves_every_tensor() -> None:
    moved = oracle_batch(4).to("meta", non_blocking=True)
    assert len(moved) == 4
    for name in TENSORS:
        assert getattr(moved, name).is_meta, name
    assert moved.sparse is not None
    assert moved.sparse.values().is_meta
    assert moved.sparse.lengths().is_meta


def test_to_the_same_device_keeps_the_content() -> None:
    batch = oracle_batch(4)
    same = batch.to("cpu")
    assert id_lists(same) == id_lists(batch)
    for name in TENSORS:
        assert torch.equal(getattr(same, name), getattr(batch, name)), name


def test_detached_predictions_share_values_but_no_graph() -> None:
    prediction = ResponsePrediction(torch.rand(3, 2, requires_grad=True), torch.rand(3, 2, requires_grad=True))
    detached = prediction.detach()
    assert torch.equal(detached.value, prediction.value)
    assert torch.equal(detached.cost, prediction.cost)
    assert not detached.value.requires_grad
    assert not detached.cost.requires_grad


@pytest.mark.gpu
def test_pinned_batch_reaches_the_device() -> None:
    batch = oracle_batch(300)
    pinned = batch.pin_memory()
    assert pinned.sparse is not None
    assert pinned.sparse.values().is_pinned()
    assert pinned.sparse.lengths().is_pinned()
    assert all(getattr(pinned, name).is_pinned() for name in TENSORS)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        moved = pinned.to("cuda", non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    moved.record_stream(torch.cuda.current_stream())
    assert id_lists(moved.to("cpu")) == id_lists(batch)
    assert id_lists(moved[100:200].to("cpu")) == id_lists(batch[100:200])
    for name in TENSORS:
        assert torch.equal(getattr(moved, name).cpu(), getattr(batch, name)), name


@pytest.mark.gpu
def test_record_stream_keeps_the_memory_until_the_stream_is_done() -> None:
    side, host = torch.cuda.Stream(), oracle_batch(20_000)
    batch = host.to("cuda")
    addresses = {getattr(batch, name).data_ptr() for name in TENSORS}
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(1_000_000_000)
    batch.record_stream(side)
    del batch
    # Allocated while the side stream is still at it; without the record these would be the addresses just freed.
    other = host.to("cuda")
    assert not addresses & {getattr(other, name).data_ptr() for name in TENSORS}
    torch.cuda.synchronize()
