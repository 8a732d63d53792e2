"""No user twice, told without holding all of them: by order where keys grow, else by sorted hashes on disk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_budget.errors import InputError
from lightning_budget.hashing import hash_ids
from lightning_budget.streaming.batches import read_piece
from lightning_budget.streaming.keys import keys_of
from lightning_budget.streaming.progress import Rows
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.streaming.source import Piece, Source
from lightning_budget.streaming.spool import Footer

SORTED_AT_ONCE = 1 << 22
"""Hashes sorted in memory."""


def unproved_pieces(source: Source, footers: list[Footer]) -> list[Piece]:
    """Pieces that may share a user with another or have one twice: all but those whose keys grow, in a range apart."""
    order = sorted(source.pieces, key=lambda p: footers[p.number].first_key)
    unproved = {p.number for p in order if not footers[p.number].ascending}
    furthest: Piece | None = None
    for piece in order:
        if furthest is not None and footers[piece.number].first_key <= footers[furthest.number].last_key:
            unproved |= {piece.number, furthest.number}
        if furthest is None or footers[piece.number].last_key > footers[furthest.number].last_key:
            furthest = piece
    return [p for p in source.pieces if p.number in unproved]


def check_unique(source: Source, pieces: list[Piece], column: str, folder: Path, ranks: Ranks, tell: Rows) -> None:
    """Refuse a user who stands in two rows of these pieces.

    Every process sorts the hashes of its pieces' users into runs on disk; each then takes some of the ranges of the
    hash and looks for neighbours that are equal.

    Raises:
        InputError: naming the user and two rows.
    """
    folder.mkdir(exist_ok=True)
    ranks.each(lambda: [_write_runs(source, p, column, folder, tell) for p in pieces[ranks.rank :: ranks.size]])
    runs = sorted(folder.glob("*.npy"))
    ranges = max(-(-sum(p.rows for p in pieces) // SORTED_AT_ONCE), ranks.size)
    found = [h for some in ranks.each(lambda: _equal_in_ranges(runs, ranges, ranks)) for h in some]
    if found:
        ranks.first(lambda: _refuse(source, pieces, column, found[0]))


def _write_runs(source: Source, piece: Piece, column: str, folder: Path, tell: Rows) -> None:
    held: list[NDArray[np.uint64]] = []
    count = number = 0

    def flush() -> None:
        nonlocal held, count, number
        if held:
            run = np.concatenate(held)
            run.sort()
            np.save(folder / f"{piece.number}-{number}.npy", run)
            held, count, number = [], 0, number + 1

    for keys in _keys(source, piece, column):
        held.append(hash_ids(keys, 0, "duplicates"))
        count += len(keys)
        tell(len(keys))
        if count >= SORTED_AT_ONCE:
            flush()
    flush()


def _equal_in_ranges(runs: list[Path], ranges: int, ranks: Ranks) -> list[int]:
    sorted_runs = [np.load(path, mmap_mode="r") for path in runs]
    for i in range(ranks.rank, ranges, ranks.size):
        low, high = ((1 << 64) * i) // ranges, ((1 << 64) * (i + 1)) // ranges
        parts = []
        for run in sorted_runs:
            start = np.searchsorted(run, np.uint64(low))
            stop = len(run) if high == 1 << 64 else np.searchsorted(run, np.uint64(high))
            parts.append(np.array(run[start:stop]))
        hashes = np.concatenate(parts)
        hashes.sort()
        equal = hashes[1:][hashes[1:] == hashes[:-1]]
        if len(equal):
            return [int(equal[0])]
    return []


def _refuse(source: Source, pieces: list[Piece], column: str, wanted: int) -> None:
    places: list[str] = []
    user: object = None
    for piece in pieces:
        row = piece.first_row
        for batch in read_piece(source, piece, [column]):
            hashes = hash_ids(keys_of(batch.column(0), column), 0, "duplicates")
            for i in np.flatnonzero(hashes == np.uint64(wanted)):
                places.append(f"{source.file_of(piece).path} row {row + int(i)}")
                user = batch.column(0)[int(i)].as_py()
            row += batch.num_rows
    raise InputError(
        f"user {user!r} stands in {' and '.join(places[:2])}",
        "each user once",
        "leave one of the rows out, or set check_duplicates=false to take rows for users",
    )


def _keys(source: Source, piece: Piece, column: str) -> Iterator[NDArray[np.int64]]:
    for batch in read_piece(source, piece, [column]):
        yield keys_of(batch.column(0), f"{source.file_of(piece).path}: column {column!r}")
