"""The same global batches for any number of processes, every row evaluated once, jagged features intact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.batching import BatchLoader, EvalSampler, TrainSampler
from lightning_budget.batch import RCTBatch
from lightning_budget.errors import InputError
from lightning_budget.table import IdList, RCTTable


def make_table(n: int, seed: int = 0) -> RCTTable:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (n,), generator=g)
    lengths[:2] = 0
    return RCTTable(
        user=torch.arange(n),
        dense=torch.randn(n, 3, generator=g),
        ids={
            "user_id": torch.randint(0, 50, (n,), generator=g),
            "viewed": IdList(
                torch.randint(0, 20, (int(lengths.sum()),), generator=g),
                torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
            ),
        },
        treatment=torch.randint(0, 3, (n,), generator=g),
        value=torch.rand(n, generator=g),
        cost=torch.rand(n, generator=g),
        propensity=torch.full((n,), 1 / 3),
    )


def id_lists(batch: RCTBatch) -> dict[str, list[list[int]]]:
    """The jagged features as plain lists, through lengths only."""
    assert batch.sparse is not None
    out = {}
    for key, feature in batch.sparse.to_dict().items():
        out[key] = [part.tolist() for part in torch.split(feature.values(), feature.lengths().tolist())]
    return out


def expected_lists(table: RCTTable, rows: list[int]) -> dict[str, list[list[int]]]:
    viewed = table.ids["viewed"]
    assert isinstance(viewed, IdList)
    return {
        "user_id": [[int(table.ids["user_id"][i])] for i in rows],  # type: ignore[index]
        "viewed": [viewed.values[int(viewed.offsets[i]) : int(viewed.offsets[i + 1])].tolist() for i in rows],
    }


@given(rows=st.integers(4, 300), share=st.integers(1, 40), world=st.integers(1, 4), epoch=st.integers(0, 3))
def test_ranks_together_see_the_single_process_batches(rows: int, share: int, world: int, epoch: int) -> None:
    batch_size = share * world
    if rows < batch_size:
        batch_size = rows // world * world  # below one batch, the size depends on the number of ranks
    samplers = [TrainSampler(rows, batch_size, rank, world, seed=3) for rank in range(world)]
    alone = TrainSampler(rows, batch_size, seed=3)
    for s in (*samplers, alone):
        s.set_epoch(epoch)
    parts = [list(s) for s in samplers]
    whole = list(alone)
    assert len(whole) == len(alone) == rows // batch_size
    for i, batch in enumerate(whole):
        assert len(batch) == batch_size
        assert torch.equal(torch.cat([p[i] for p in parts]), batch)
        assert len({len(p[i]) for p in parts}) == 1
    seen = torch.cat(whole)
    assert len(seen.unique()) == len(seen)
    assert 0 <= int(seen.min()) <= int(seen.max()) < rows


@given(rows=st.integers(1, 300), share=st.integers(1, 40), world=st.integers(1, 4))
def test_evaluation_covers_every_row_once_in_order(rows: int, share: int, world: int) -> None:
    parts = [list(EvalSampler(rows, share * world, rank, world)) for rank in range(world)]
    assert len({len(p) for p in parts}) == 1
    seen = []
    for batches in zip(*parts, strict=True):
        assert len({len(b) for b in batches}) == 1
        seen.append(torch.cat(batches))
    order = torch.cat(seen)
    assert torch.equal(order[order >= 0], torch.arange(rows))
    filling = -1 - order[order < 0]
    assert len(filling) < world
    assert ((filling >= 0) & (filling < rows)).all()


def test_filling_repeats_rows_and_is_marked() -> None:
    table = make_table(5)
    batches = [next(iter(BatchLoader(table, EvalSampler(5, 8, rank, 4)))) for rank in range(4)]
    assert [b.row.tolist() for b in batches] == [[0, 1], [2, 3], [4, -1], [-1, -1]]
    assert torch.equal(torch.cat([b.dense for b in batches]), table.dense[[0, 1, 2, 3, 4, 0, 1, 2]])


def test_epochs_differ_and_repeat() -> None:
    def order(epoch: int, seed: int = 0) -> list[int]:
        sampler = TrainSampler(100, 10, seed=seed)
        sampler.set_epoch(epoch)
        return torch.cat(list(sampler)).tolist()

    assert order(1) == order(1)
    assert len({tuple(order(e, s)) for e in range(3) for s in range(3)}) == 9


def test_table_smaller_than_a_batch_gives_one_batch() -> None:
    parts = [list(TrainSampler(11, 64, rank, 4)) for rank in range(4)]
    assert [[len(b) for b in p] for p in parts] == [[2]] * 4
    assert len(torch.cat([p[0] for p in parts]).unique()) == 8


@pytest.mark.parametrize("sampler", [TrainSampler, EvalSampler])
def test_batch_size_must_divide(sampler: type[EvalSampler]) -> None:
    with pytest.raises(
        InputError, match=r"global batch size 10 over 4 processes; allowed: a positive multiple of 4; fix: set it to 8"
    ):
        sampler(100, 10, 0, 4)
    with pytest.raises(InputError, match="global batch size 0"):
        sampler(100, 0)
    with pytest.raises(InputError, match="0 rows"):
        sampler(0, 10)


def test_fewer_rows_than_processes() -> None:
    with pytest.raises(InputError, match="3 training rows for 4 processes"):
        TrainSampler(3, 8, 0, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_rows_they_name(workers: int) -> None:
    table = make_table(64, seed=1)
    loader = BatchLoader(table, TrainSampler(64, 16, seed=5), num_workers=workers)
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert [len(b) for b in batches] == [16] * 4
        for batch in batches:
            rows = batch.row.tolist()
            for name in ("dense", "treatment", "value", "cost", "propensity"):
                assert torch.equal(getattr(batch, name), getattr(table, name)[rows])
            assert id_lists(batch) == expected_lists(table, rows)
        orders.append(torch.cat([b.row for b in batches]).tolist())
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(64))


@given(start=st.integers(0, 12), stop=st.integers(0, 14), seed=st.integers(0, 5))
def test_slices_of_a_batch_keep_the_lists(start: int, stop: int, seed: int) -> None:
    table = make_table(40, seed)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:12]
    rows[3] = 0  # an empty list inside
    part = table.batch(rows)[start:stop]
    kept = rows[start:stop].tolist()
    assert part.row.tolist() == kept
    assert torch.equal(part.dense, table.dense[kept])
    if kept:  # torchrec cannot take an empty batch apart
        assert id_lists(part) == expected_lists(table, kept)


def test_all_lists_empty() -> None:
    batch = make_table(40).batch(torch.tensor([0, 1]))
    assert id_lists(batch)["viewed"] == [[], []]
    assert id_lists(batch[1:2])["viewed"] == [[]]


@pytest.mark.parametrize("workers", [0, 2])
def test_resumes_inside_an_epoch(workers: int) -> None:
    table = make_table(60)

    def loader(batch_size: int = 10) -> BatchLoader:
        loader = BatchLoader(table, TrainSampler(60, batch_size), num_workers=workers)
        loader.sampler.set_epoch(2)
        return loader

    full = [b.row.tolist() for b in loader()]
    first = loader()
    it = iter(first)
    seen = [next(it).row.tolist() for _ in range(4)]
    state = first.state_dict()
    second = loader()
    second.load_state_dict(state)
    assert seen + [b.row.tolist() for b in second] == full
    assert [b.row.tolist() for b in second] == full  # the next pass is whole again

    later = loader()
    later.load_state_dict(state)
    later.sampler.set_epoch(3)  # that epoch is over
    assert len(list(later)) == 6

    other = loader(batch_size=20)
    other.load_state_dict(state)
    with pytest.raises(InputError, match="resuming inside an epoch with global batch size 20"):
        next(iter(other))
