"""Trials of any size, read from Parquet piece by piece: one scan, then shuffled batches that can be resumed."""
