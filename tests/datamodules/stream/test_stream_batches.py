"""Every training row once an epoch, whoever reads it, and the same ones again after a break at any place."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from streamed import all_rows, assert_same_batch, module, stream_of, write_folder

from datamodules import ParquetRCTDataModule, StreamLoader
from lightning_budget.data.stream.plan import EpochPlan
from lightning_budget.data.stream.windows import TrainingStream
from lightning_budget.errors import InputError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ParquetRCTDataModule:
    """Set up, of 600 rows with lists and weights; windows of three to six row groups."""
    rng = np.random.default_rng(5)
    n = 600
    lengths = rng.integers(0, 4, n)
    table = pa.table(
        {
            "uid": rng.integers(0, 150, n),
            "arm": np.array(["none", "low", "high"])[rng.integers(0, 3, n)],
            "spend": rng.exponential(3.0, n),
            "paid": rng.random(n),
            "p": np.full(n, 1 / 3),
            "age": rng.integers(18, 80, n),
            "score": rng.standard_normal(n),
            "w": rng.random(n),
            "city": np.array(["Rome", "Bonn", "Oslo", "Bern"])[rng.integers(0, 4, n)],
            "level": rng.integers(1, 13, n),
            "viewed": pa.array([[f"c{j}" for j in rng.integers(0, 9, k)] for k in lengths], pa.list_(pa.string())),
        }
    )
    held = module(write_folder(table, tmp_path_factory.mktemp("stream") / "d", group_rows=25), weight="w", seed=3)
    held.setup()
    return held


def ranks_of(data: ParquetRCTDataModule, ranks: int, workers: int, epoch: int = 0) -> list[TrainingStream]:
    """The streams of all ranks."""
    plan = {"ranks": ranks, "workers": max(workers, 1), "epoch": epoch, "batch_rows": 32 // ranks}
    return [stream_of(data, rank=rank, **plan) for rank in range(ranks)]


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_plans_lose_nothing(
    pieces: list[int], ranks: int, workers: int, batch_rows: int, buffer_rows: int, epoch: int
) -> None:
    """Of any pieces: every row in one window of one stream, but for fewer than there are ranks."""
    seen: list[tuple[int, int]] = []
    for rank in range(ranks):
        plan = EpochPlan(tuple(pieces), batch_rows, buffer_rows, rank, ranks, workers, 7, epoch)
        assert plan.rows == sum(pieces) // ranks
        rows = []
        for worker in range(workers):
            windows = plan.windows(worker)
            rows.append(sum(w.rows for w in windows))
            assert -(-rows[-1] // batch_rows) == plan.stream_batches(worker)
            assert [w.first for w in windows] == np.cumsum([0, *(w.rows for w in windows)])[:-1].tolist()
            for w in windows:
                assert w.rows <= max(buffer_rows, max(s.rows for s in w.segments))
                assert sorted(plan.order(worker, w).tolist()) == list(range(w.rows))
                again = replace(w, number=w.number + 1), replace(plan, epoch=epoch + 1), replace(plan, rank=rank + 1)
                others = [plan.order(worker, again[0]), again[1].order(worker, w), again[2].order(worker, w)]
                others.append(plan.order(worker + 1, w))
                assert w.rows < 15 or not any(torch.equal(plan.order(worker, w), other) for other in others)
                seen += [(s.piece, i) for s in w.segments for i in range(s.start, s.stop)]
        assert sum(rows) == plan.rows
    assert len(set(seen)) == len(seen) == sum(pieces) // ranks * ranks
    assert all(0 <= i < pieces[piece] for piece, i in seen)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 2])
def test_every_row_once(data: ParquetRCTDataModule, ranks: int, workers: int) -> None:
    """In the streams; processes of a loader are looked at below."""
    orders = []
    for epoch in (0, 1):
        per_rank = [
            interleaved([list(s.batches(w)) for w in range(max(workers, 1))])
            for s in ranks_of(data, ranks, workers, epoch)
        ]
        sizes = [[len(b) for b in batches] for batches in per_rank]
        assert sizes == [sizes[0]] * ranks
        assert set(sizes[0][:-1]) == {32 // ranks}
        rows = [r for batches in per_rank for r in all_rows(batches)]
        assert len(set(rows)) == len(rows) == len(data.train) // ranks * ranks
        orders.append(rows)
        for batches in per_rank:
            for batch in batches:
                assert_same_batch(batch, data.train.batch(batch.row))
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def interleaved(streams: list[list[Any]]) -> list[Any]:
    """As a loader takes from its processes, in turn."""
    return [s[i] for i in range(max(map(len, streams))) for s in streams if i < len(s)]


@pytest.mark.parametrize(("ranks", "workers", "buffer_rows"), [(1, 1, 100), (2, 2, 60), (1, 1, 10), (1, 3, 10_000)])
def test_resumed_anywhere(data: ParquetRCTDataModule, ranks: int, workers: int, buffer_rows: int) -> None:
    """From every batch on; windows smaller than a batch too."""
    for stream in ranks_of(data, ranks, workers):
        stream = replace(stream, threads=1, plan=replace(stream.plan, buffer_rows=buffer_rows))
        for worker in range(workers):
            every = list(stream.batches(worker))
            for first in [*range(0, len(every), 3), len(every) - 1, len(every)]:
                rest = list(stream.batches(worker, first))
                assert [b.row.tolist() for b in rest] == [b.row.tolist() for b in every[first:]]
                for a, b in zip(rest[:2], every[first:], strict=False):
                    assert_same_batch(a, b)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_new_module_goes_on(data: ParquetRCTDataModule, workers: int) -> None:
    """With processes of a loader, after a break at a batch that is not the first process's."""
    data.num_workers = workers
    try:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(4)
        every = list(loader)
        assert len(every) == len(loader)
        assert len(set(all_rows(every))) == len(data.train)
        first = data.train_dataloader()
        first.sampler.set_epoch(4)
        source = iter(first)
        for _ in range(5):
            next(source)
        state = pickle.loads(pickle.dumps(first.state_dict()))
        source.close()  # type: ignore[attr-defined]  # it is a generator
        second = data.train_dataloader()
        second.load_state_dict(state)
        second.sampler.set_epoch(4)
        rest = list(second)
        assert [b.row.tolist() for b in rest] == [b.row.tolist() for b in every[5:]]
        for a, b in zip(rest, every[5:], strict=True):
            assert_same_batch(a, b)
        assert second.state_dict() == loader.state_dict()
        # A state of the end, or of another epoch, is no place to go on from.
        second.load_state_dict(loader.state_dict())
        assert len(list(second)) == len(every)
    finally:
        data.num_workers = 0


def test_another_order_is_refused(data: ParquetRCTDataModule) -> None:
    loader = data.train_dataloader()
    next(iter(loader))
    state = loader.state_dict()
    for name, other in (("batch_size", 64), ("ranks", 2), ("num_workers", 1), ("buffer_rows", 5), ("seed", 1)):
        again = data.train_dataloader()
        again.load_state_dict({**state, name: other})
        with pytest.raises(InputError, match=rf"{name}=.*{other}, as in the checkpoint"):
            next(iter(again))
    again = data.train_dataloader()
    again.load_state_dict({**state, "data": "else"})
    with pytest.raises(InputError, match="other files or columns"):
        next(iter(again))


@pytest.mark.parametrize("switch", ["0", "1"])
def test_a_batch_holds_what_the_order_of_the_window_gives_it(
    data: ParquetRCTDataModule, switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a piece side by side, in the order of the file; with and without compiled code."""
    monkeypatch.setenv("LIGHTNING_BUDGET_COMPILED", switch)
    stream = stream_of(data)
    first, (window, *_) = np.cumsum([0, *stream.plan.piece_rows]), stream.plan.windows(0)
    rows = np.concatenate([np.arange(s.start, s.stop) + first[s.piece] for s in window.segments])
    expected = rows[stream.plan.order(0, window).numpy()]
    place = {s.piece: i for i, s in enumerate(window.segments)}
    size = stream.plan.batch_rows
    for number, batch in zip(range(window.rows // size), stream.batches(0), strict=False):
        wanted = expected[number * size : (number + 1) * size]
        pieces = [place[int(p)] for p in np.searchsorted(first, wanted, side="right") - 1]
        assert batch.row.tolist() == wanted[np.lexsort((wanted, pieces))].tolist()
        assert_same_batch(batch, data.train.batch(batch.row))


def test_two_windows_in_memory(data: ParquetRCTDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read ahead by one window, never two; and reading ends with the iterator."""
    read: list[int] = []
    original = TrainingStream._begin

    def counted(self: TrainingStream, pool: Any, worker: int, window: Any) -> Any:
        read.append(window.number)
        return original(self, pool, worker, window)

    monkeypatch.setattr(TrainingStream, "_begin", counted)
    stream = stream_of(data)
    windows = stream.plan.windows(0)
    assert len(windows) > 2
    batches, count = stream.batches(0), 0
    for batch in batches:
        count += len(batch)
        current = next(w.number for w in windows if count <= w.first + w.rows)
        assert max(read) <= current + 1
        if current == 1:
            break
    batches.close()  # type: ignore[attr-defined]  # it is a generator
    assert max(read) <= 2
    assert not [t for t in threading.enumerate() if t.name.startswith("window")]


def test_a_file_damaged_after_the_scan(tmp_path: Path, trial: pa.Table) -> None:
    data = module(write_folder(trial, tmp_path / "d"))
    data.setup()
    path = tmp_path / "d" / "part-2.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"part-2.parquet was changed"):
        list(data.train_dataloader())
    assert not [t for t in threading.enumerate() if t.name.startswith("window")]
    path.unlink()
    with pytest.raises(InputError, match=r"part-2.parquet"):
        list(data.train_dataloader())


def test_processes_tell_of_a_damaged_file(tmp_path: Path, trial: pa.Table) -> None:
    data = module(write_folder(trial, tmp_path / "d"), num_workers=1)
    data.setup()
    (tmp_path / "d" / "part-2.parquet").unlink()
    with pytest.raises(InputError, match=r"part-2.parquet"):
        list(data.train_dataloader())


def test_more_processes_than_fit(data: ParquetRCTDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_place", lambda: (0, 3))
    with pytest.raises(InputError, match="global batch size 32 over 3 processes"):
        data.train_dataloader()


def test_batches_are_pinned_and_streamed(data: ParquetRCTDataModule) -> None:
    batch = next(iter(data.train_dataloader()))
    assert isinstance(data.train_dataloader(), StreamLoader)
    assert batch.dense.is_contiguous()
    assert batch.dense.dtype == torch.float32
    assert batch.sparse is not None
    assert batch.sparse.keys() == ["city", "level", "viewed"]
