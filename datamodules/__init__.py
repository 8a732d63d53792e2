"""Randomized trials as Lightning data modules."""

from datamodules.base import RCTDataModule
from datamodules.batching import BatchLoader, BatchSampler, EvalSampler, TrainSampler
from datamodules.campaign import CampaignDataModule
from datamodules.oracle import OracleTableDataModule
from datamodules.parquet_rct import ParquetRCTDataModule
from datamodules.streaming import StreamLoader
from datamodules.table_rct import TableRCTDataModule

__all__ = [
    "BatchLoader",
    "BatchSampler",
    "CampaignDataModule",
    "EvalSampler",
    "OracleTableDataModule",
    "ParquetRCTDataModule",
    "RCTDataModule",
    "StreamLoader",
    "TableRCTDataModule",
    "TrainSampler",
]
