"""A thread reads ahead, and nobody but the clock can tell."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.types import _Stateful
from training_runs import small_data

from datamodules.batching import BatchLoader, TrainSampler
from lightning_budget.training.prefetch import prefetch

WAIT = 30.0


class Numbers:
    """Yields 0, 1, …, and says how far it has been read."""

    def __init__(self, n: int, fails_at: int | None = None) -> None:
        self.n, self.fails_at, self.read = n, fails_at, 0
        self.changed = threading.Condition()

    def __iter__(self) -> Iterator[int]:
        for i in range(self.n):
            if i == self.fails_at:
                raise OSError(f"batch {i} is torn")
            with self.changed:
                self.read = i + 1
                self.changed.notify_all()
            yield i

    def has_been_read(self, n: int, timeout: float = WAIT) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.read >= n, timeout)


def readers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def batch_loader() -> BatchLoader:
    data = small_data(train_rows=512)
    return BatchLoader(data.train, TrainSampler(512, 64, seed=3))


def rows(batch: Any) -> list[int]:
    return batch.row.tolist()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_batches_of_the_loader_in_order_every_epoch(depth: int) -> None:
    expected, loader = batch_loader(), prefetch(batch_loader(), depth)
    assert len(loader) == len(expected) == 8
    for epoch in (0, 4):
        expected.sampler.set_epoch(epoch)
        batches = iter(loader)
        loader.sampler.set_epoch(epoch)  # as late as a trainer does
        assert [rows(b) for b in batches] == [rows(b) for b in expected]
    assert readers() == []


def test_reads_ahead_while_the_consumer_is_busy_but_no_further_than_agreed() -> None:
    numbers = Numbers(100)
    batches = iter(prefetch(numbers, depth=3))
    assert numbers.read == 0  # nothing before the first batch is asked for
    assert next(batches) == 0
    # One is out, three are ready, and one waits for room.
    assert numbers.has_been_read(5)
    assert not numbers.has_been_read(6, timeout=0.2)
    assert next(batches) == 1
    assert numbers.has_been_read(6)


@pytest.mark.parametrize("taken", [1, 3])
def test_ends_with_its_iterator(taken: int) -> None:
    numbers = Numbers(100)
    batches = iter(prefetch(numbers, depth=2))
    for _ in range(taken):
        next(batches)
    assert len(readers()) == 1
    del batches
    assert readers() == []
    assert numbers.read < 100


def test_ends_when_the_consumer_fails() -> None:
    def train() -> None:
        for batch in prefetch(Numbers(100)):
            if batch == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert readers() == []


def test_an_exception_comes_where_its_batch_would_have() -> None:
    seen = []

    def train() -> None:
        for batch in prefetch(Numbers(10, fails_at=4)):
            seen.append(batch)

    with pytest.raises(OSError, match="batch 4 is torn"):
        train()
    assert seen == [0, 1, 2, 3]
    assert readers() == []


def test_the_state_is_that_of_the_batches_handed_out() -> None:
    whole = [rows(b) for b in batch_loader()]
    inner = batch_loader()
    loader = prefetch(inner, depth=4)
    batches = iter(loader)
    seen = [rows(next(batches)) for _ in range(2)]
    while inner.state_dict()["position"] < 6:  # what has been read ahead
        threading.Event().wait(0.01)
    assert loader.state_dict()["position"] == 2
    resumed = prefetch(batch_loader())
    resumed.load_state_dict(loader.state_dict())
    assert seen + [rows(b) for b in resumed] == whole
    assert resumed.state_dict()["position"] == 8


def test_looks_like_the_loader_inside() -> None:
    loader = batch_loader()
    assert prefetch(loader).even_over_ranks
    assert prefetch(loader).sampler is loader.sampler
    assert isinstance(prefetch(loader), _Stateful)
    unsized = prefetch(Numbers(3))
    assert not unsized.even_over_ranks
    assert not isinstance(unsized, _Stateful)
    with pytest.raises(TypeError):
        len(unsized)
    assert prefetch(loader, device=torch.device("cpu")).device is None


@pytest.mark.gpu
def test_batches_reach_the_device_intact() -> None:
    expected, loader = batch_loader(), prefetch(batch_loader(), device=torch.device("cuda", 0))
    large = torch.rand(2048, 2048, device="cuda")
    seen = []
    for batch in loader:
        assert batch.dense.is_cuda
        large = (large @ large).softmax(0)  # the model is busy while the next batch is copied
        seen.append(batch.to("cpu"))
    for mine, theirs in zip(seen, expected, strict=True):
        assert torch.equal(mine.dense, theirs.dense)
        assert torch.equal(mine.row, theirs.row)
        assert torch.equal(mine.sparse.values(), theirs.sparse.values())
