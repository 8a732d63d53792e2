"""Randomized trials as Lightning data modules."""

from datamodules.base import RCTDataModule
from datamodules.batching import BatchLoader, BatchSampler, EvalSampler, TrainSampler
from datamodules.campaign import CampaignDataModule
from datamodules.table_rct import TableRCTDataModule

__all__ = [
    "BatchLoader",
    "BatchSampler",
    "CampaignDataModule",
    "EvalSampler",
    "RCTDataModule",
    "TableRCTDataModule",
    "TrainSampler",
]
