"""Tables of any size, as they come, into a Parquet file of even row groups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

ROW_GROUP = 1 << 16
METADATA = b"lightning_budget"
"""Key of the file's metadata: data set, source and licence, as JSON."""


class RowGroups:
    """Writes tables of any size as row groups of one."""

    def __init__(self, path: Path, metadata: Mapping[str, object]) -> None:
        self._path, self._metadata = path, {METADATA: json.dumps(metadata, ensure_ascii=False).encode()}
        self._writer: pyarrow.parquet.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self.rows = 0

    def __enter__(self) -> RowGroups:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self._write(everything=True)
        if self._writer is not None:
            self._writer.close()

    def add(self, table: pa.Table) -> None:
        """Write rows after those before."""
        if self._writer is None:
            schema = table.schema.with_metadata(self._metadata)
            self._writer = pyarrow.parquet.ParquetWriter(self._path, schema, compression="zstd")
        self._waiting.append(table)
        self.rows += len(table)
        if sum(map(len, self._waiting)) >= ROW_GROUP:
            self._write()

    def _write(self, everything: bool = False) -> None:
        if self._writer is None or not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        end = len(table) if everything else len(table) // ROW_GROUP * ROW_GROUP
        if end:
            self._writer.write_table(table.slice(0, end), row_group_size=ROW_GROUP)
        self._waiting = [table.slice(end)]
