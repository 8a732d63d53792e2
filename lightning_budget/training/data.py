"""What training needs of a data module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from lightning_budget.batch import RCTBatch
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable


class TrialData(Protocol):
    """A Lightning data module over a randomized trial in three splits; ``datamodules`` has some.

    Attributes:
        statistics: of the whole training split.
        train: its rows, on which the goal is measured, or a random sample of its users with all their rows where it is
            larger than memory; an attribute ``train_is_sample`` is then true, and ``rows`` has the size of each split.
            Steps see all rows all the same.
        val, test: likewise.
    """

    schema: DataSchema
    statistics: DataStatistics
    train: RCTTable
    val: RCTTable
    test: RCTTable

    def split(self, name: str) -> RCTTable:
        """The split ``train``, ``val`` or ``test``."""
        ...

    def train_dataloader(self) -> Iterable[RCTBatch]:
        """All rows, shuffled anew every epoch."""
        ...

    def table_dataloader(self, table: RCTTable) -> Iterable[RCTBatch]:
        """Any table in evaluation order: every row once over all ranks, filling marked by ``row`` −1."""
        ...


def trial_data(trainer: object) -> TrialData:
    """The data module attached to a trainer."""
    return trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it when a loop starts
