"""The processes of a job, one or those that torchrun started, and their agreement on errors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

from lightning_budget.errors import InputError

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long processes wait for one that still scans; torchrun ends them if one dies."""


class Ranks:
    """A team, see :class:`lightning_budget.allocation.shared_users.Team`, that also works apart and fails together.

    Attributes:
        rank: of this process; size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def gather(self, mine: T) -> list[T]:
        """What every process brings, by rank."""
        if self.size == 1:
            return [mine]
        found: list[T] = [mine] * self.size
        dist.all_gather_object(found, mine)
        return found

    def total(self, mine: Tensor) -> Tensor:
        """The sum over processes."""
        if self.size > 1:
            dist.all_reduce(mine)
        return mine

    def each(self, work: Callable[[], T]) -> list[T]:
        """Every process does its part; returns all results by rank, or raises in all of them what failed in one."""
        try:
            mine: tuple[T | None, BaseException | None] = work(), None
        except Exception as error:
            if self.size == 1:
                raise
            mine = None, error
        everyone = self.gather(mine)
        for rank, (_, error) in enumerate(everyone):
            if error is not None:
                raise error if rank == self.rank else ElsewhereError.of(error)
        return [result for result, _ in everyone]  # type: ignore[misc]

    def first(self, work: Callable[[], T]) -> T:
        """Rank 0 does it, all get the result."""
        return self.each(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]


class ElsewhereError(InputError):
    """What another process has already told."""

    @classmethod
    def of(cls, error: BaseException) -> ElsewhereError:
        return cls("another process failed", str(error), "see its message")


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this job: those that torchrun's environment describes, or this one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Ranks()
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
