"""The embedded campaign as a LightningDataModule."""

from __future__ import annotations

import os
from typing import Any

from datamodules.base import SPLITS, RCTDataModule
from lightning_budget.campaign import Campaign
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable, concatenate

BYTES_PER_ROW = 350
"""Of the columns, twice: partitions and their concatenation lie in memory together."""


class CampaignDataModule(RCTDataModule):
    """Generate a coupon trial with oracle outcomes; see :class:`~lightning_budget.campaign.Campaign`.

    Args:
        batch_size, eval_batch_size, num_workers, pin_memory: as :class:`RCTDataModule`.
        seed: names the population, its draws, and the order of training batches.
        campaign: arguments of :class:`~lightning_budget.campaign.Campaign`.
    """

    def __init__(
        self,
        batch_size: int = 2048,
        eval_batch_size: int = 16_384,
        num_workers: int = 0,
        seed: int = 0,
        pin_memory: bool | None = None,
        **campaign: Any,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, pin_memory)
        self.campaign = Campaign(seed=seed, **campaign)

    def load(self) -> tuple[dict[str, RCTTable], DataSchema]:
        """All partitions of every split.

        Raises:
            InputError: if they do not fit in memory.
        """
        campaign = self.campaign
        _check_memory(sum(campaign.rows(s) for s in SPLITS))
        tables = {}
        for name in SPLITS:
            tables[name] = concatenate([campaign.partition(name, i) for i in range(campaign.partitions(name))])
        return tables, campaign.schema


def _check_memory(rows: int) -> None:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = rows * BYTES_PER_ROW
    if needed > free:
        raise InputError(
            f"a campaign of {rows:,} rows needs about {needed / 2**30:,.0f} GiB, {free / 2**30:,.0f} are free",
            f"up to {free // BYTES_PER_ROW:,} rows of all splits together",
            "write them with scripts/simulate.py and train with data=parquet, or lower data.train_rows",
        )
