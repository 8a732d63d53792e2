"""Randomized trials as Lightning data modules."""

from datamodules.base import RCTDataModule
from datamodules.batching import BatchLoader, BatchSampler, EvalSampler, TrainSampler
from datamodules.table_rct import TableRCTDataModule

__all__ = ["BatchLoader", "BatchSampler", "EvalSampler", "RCTDataModule", "TableRCTDataModule", "TrainSampler"]
