"""Columns that Arrow holds in chunks."""

from __future__ import annotations

import pyarrow as pa


def as_one(data: pa.ChunkedArray | pa.Array) -> pa.Array:
    """All chunks as one; the chunk itself where there is only one."""
    if not isinstance(data, pa.ChunkedArray):
        return data
    return data.chunk(0) if data.num_chunks == 1 else data.combine_chunks()
