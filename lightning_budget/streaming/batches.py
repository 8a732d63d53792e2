"""Rows of a piece, batch by batch, read ahead on a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from lightning_budget.streaming.source import Piece, Source, open_parquet, unreadable

BATCH_ROWS = 1 << 17
"""Rows whose predictions stay in cache for a handful of treatments."""

AHEAD = 2
"""Batches read ahead."""

LARGE_GROUP = 1 << 28
"""Bytes of a row group beyond which its columns are read bit by bit instead of whole."""


def read_piece(
    source: Source, piece: Piece, columns: list[str], rows: int = BATCH_ROWS, ahead: bool = True
) -> Iterator[pa.RecordBatch]:
    """Batches of at most so many rows, in the order of the file, with these columns in this order.

    Args:
        ahead: read on while a batch is worked on, by a thread more; without, a batch is worked on in the cache of the
            core that has decoded it.

    Raises:
        InputError: if the file is truncated or damaged.
    """
    file = source.file_of(piece)
    constants = {k: v for k, v in file.constants.items() if k in columns and k not in source.schema.names}
    physical = [c for c in columns if c not in constants]
    try:
        # Several threads that read for themselves would only wait for Arrow's.
        found = _batches(file.path, piece, physical, rows, use_threads=ahead)
        for batch in _read_ahead(found) if ahead else found:
            yield _with_constants(batch, constants, columns)
    except (OSError, pa.ArrowException) as error:
        raise unreadable(file.path, error) from error


def _read_ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    ready: queue.Queue[pa.RecordBatch | BaseException | None] = queue.Queue(AHEAD)
    stop = threading.Event()

    def put(item: pa.RecordBatch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=read, name="reader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def first_row(source: Source, column: str) -> Any:
    """The first entry of a column."""
    piece = source.pieces[0]
    for batch in _batches(source.file_of(piece).path, piece, [column], 1):
        return batch.column(0)[0].as_py()
    return None


def _batches(
    path: str, piece: Piece, columns: list[str], rows: int, use_threads: bool = True
) -> Iterator[pa.RecordBatch]:
    with open_parquet(path) as whole:
        sizes = [whole.metadata.row_group(g).total_byte_size for g in piece.groups]
    buffer = 1 << 20 if max(sizes) > LARGE_GROUP else 0
    with pyarrow.parquet.ParquetFile(path, buffer_size=buffer) as file:
        count = 0
        for batch in file.iter_batches(rows, row_groups=list(piece.groups), columns=columns, use_threads=use_threads):
            if not batch.num_rows:
                continue
            count += batch.num_rows
            yield batch.select(columns)
    if count != piece.rows:
        raise pa.ArrowInvalid(f"{count} rows where its footer tells {piece.rows}")


def _with_constants(batch: pa.RecordBatch, constants: dict[str, object], columns: list[str]) -> pa.RecordBatch:
    if not constants:
        return batch
    arrays = [
        pa.array([constants[c]]).take(pa.array([0] * batch.num_rows, pa.int8())) if c in constants else batch.column(c)
        for c in columns
    ]
    return pa.RecordBatch.from_arrays(arrays, names=columns)
