"""The embedded campaign as a LightningDataModule."""

from __future__ import annotations

from typing import Any

from datamodules.base import SPLITS, RCTDataModule
from lightning_budget.campaign import Campaign
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable, concatenate


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
        """All partitions of every split."""
        tables = {
            s: concatenate([self.campaign.partition(s, i) for i in range(self.campaign.partitions(s))]) for s in SPLITS
        }
        return tables, self.campaign.schema
