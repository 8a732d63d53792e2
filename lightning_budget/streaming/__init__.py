"""Allocation of more users than fit in memory: Parquet in, Parquet out, on one process or several."""

from lightning_budget.streaming.job import Request, Result, allocate_files

__all__ = ["Request", "Result", "allocate_files"]
