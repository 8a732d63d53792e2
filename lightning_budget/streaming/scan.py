"""The one pass over all rows: settle whom the bracket settles, keep the others, check every number on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lightning_budget.allocation.sampled_bracket import bracket_from_clusters
from lightning_budget.allocation.search import Bracket
from lightning_budget.allocation.settled import arm_dtype, settle
from lightning_budget.errors import InputError
from lightning_budget.streaming.batches import read_piece
from lightning_budget.streaming.keys import keys_of
from lightning_budget.streaming.predictions import Scorer
from lightning_budget.streaming.progress import Rows
from lightning_budget.streaming.source import Piece, Source
from lightning_budget.streaming.spool import Footer, SpoolWriter

SAMPLE_SHARE, FEWEST_SAMPLED, MOST_SAMPLED = 16, 4, 16
"""Every sixteenth piece is looked at before the scan, but not fewer or more than these."""

SAMPLE_USERS = 1 << 17
"""Users drawn from all pieces of the sample together."""

_RUN = 64


def scan_piece(
    source: Source,
    piece: Piece,
    scorer: Scorer,
    bracket: Bracket,
    path: Path,
    seal: str,
    batch_rows: int,
    negative: bool,
    tell: Rows,
    ahead: bool = True,
) -> Footer:
    """Read a piece and leave its spool at ``path``.

    Args:
        negative: whether costs below 0 are allowed.
        tell: told of every batch.
        ahead: see :func:`read_piece`.

    Raises:
        InputError: for a number that is not finite or not allowed, naming file, row and column.
    """
    row = 0
    with SpoolWriter(path, seal, scorer.arms, scorer.dtype, scorer.once) as spool:
        for batch in read_piece(source, piece, scorer.columns, batch_rows, ahead):
            key = keys_of(batch.column(scorer.ids), _where(source, piece, scorer.ids))
            value, cost = scorer(batch, source.file_of(piece).path)
            arm = torch.empty(len(key), dtype=arm_dtype(scorer.arms))
            (part,) = settle(value, cost, [bracket], arm)
            if not part.finite or not negative:
                check_numbers(value, cost, source, piece, row, negative)
            spool.add(arm, value, cost, key, part)
            row += len(key)
            tell(len(key))
        return spool.close()


def sample_pieces(source: Source) -> list[Piece]:
    """The pieces that the sample looks at, the same in every process."""
    count = min(max(len(source.pieces) // SAMPLE_SHARE, FEWEST_SAMPLED), MOST_SAMPLED, len(source.pieces))
    return [source.pieces[i] for i in sorted(np.random.default_rng(0).choice(len(source.pieces), count, False))]


def draw(
    source: Source, piece: Piece, scorer: Scorer, batch_rows: int, negative: bool, ahead: bool = True
) -> tuple[Tensor, Tensor]:
    """Value and cost ``[K, m]`` of runs of neighbours all over a piece."""
    runs = max(SAMPLE_USERS // len(sample_pieces(source)) // _RUN, 1)
    starts = np.sort(np.random.default_rng(piece.number).integers(0, max(piece.rows - _RUN, 0) + 1, runs))
    rows = np.minimum(starts[:, None] + np.arange(_RUN), piece.rows - 1).ravel()
    rows = np.unique(rows) if piece.rows <= runs * _RUN else rows
    values, costs, first = [], [], 0
    for batch in read_piece(source, piece, scorer.columns, batch_rows, ahead):
        here = rows[(rows >= first) & (rows < first + batch.num_rows)] - first
        if len(here):
            path = source.file_of(piece).path
            value, cost = (x.clone() for x in scorer(batch.take(pa.array(here)), path))
            values.append(value)
            costs.append(cost)
            if not (value.isfinite().all() and cost.isfinite().all()):
                check_numbers(*scorer(batch, path), source, piece, first, negative)
        first += batch.num_rows
    return torch.cat(values, 1), torch.cat(costs, 1)


def bracket_of(drawn: list[tuple[Tensor, Tensor]], source: Source, budget: float) -> Bracket:
    """A bracket from what was drawn of the sample's pieces."""
    value, cost = (torch.cat(x, 1) for x in zip(*drawn, strict=True))
    clusters = [v.shape[1] for v, _ in drawn]
    return bracket_from_clusters(value, cost, clusters, len(source.pieces), budget, source.rows)


def check_numbers(value: Tensor, cost: Tensor, source: Source, piece: Piece, row: int, negative: bool) -> None:
    """Refuse numbers that are not finite, and costs below 0 where these are not allowed.

    Args:
        row: of the batch's first user in the piece.
    """
    for name, x in (("value", value), ("cost", cost)):
        wrong = ~torch.isfinite(x)
        allowed, fix = "finite numbers", "mend the predictions, or leave those users out"
        if name == "cost" and not negative and not bool(wrong.any()):
            wrong = x < 0
            allowed, fix = "costs of at least 0", "mend them, or set allow_negative_cost=true"
        if bool(wrong.any()):
            user = int(wrong.any(0).nonzero()[0])
            arm = int(wrong[:, user].nonzero()[0])
            where = f"{source.file_of(piece).path}: row {piece.first_row + row + user}"
            null = " or null" if bool(torch.isnan(x[arm, user])) else ""
            raise InputError(f"{where}: {name} of treatment {arm} is {float(x[arm, user])}{null}", allowed, fix)


def _where(source: Source, piece: Piece, column: str) -> str:
    return f"{source.file_of(piece).path}: column {column!r}"
