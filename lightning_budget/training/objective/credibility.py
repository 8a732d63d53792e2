"""How much of the goal a trial can carry: its gradient rests on the rows that paid."""

from __future__ import annotations

import torch

from lightning_budget.table import RCTTable
from lightning_budget.training.data import TrialData

PIECE = 1 << 20
"""Rows that are summed at a time."""


def paying_rows_of(data: TrialData) -> float:
    """Effective number of paying rows of the training split, estimated where a sample of its users is in memory."""
    n = paying_rows(data.train)
    if getattr(data, "train_is_sample", False):
        n *= data.rows["train"] / len(data.train)  # type: ignore[attr-defined]  # such data have it
    return n


def paying_rows(table: RCTTable) -> float:
    """Effective number of rows that the observed value is spread over, between 1 and N; 0 where nothing was paid.

    With sample weights w and values v::

        n = (Σ w |v|)² / Σ (w v)²

    The number of buyers where all buy alike; fewer where a few pay most. Source: Kish 1965, of weights w |v|.

    Args:
        table: N rows.
    """
    total = squares = 0.0
    # Piece by piece: a float64 copy of the whole column is not for large trials.
    for first in range(0, len(table.value), PIECE):
        rows = slice(first, first + PIECE)
        paid = table.value[rows].double().abs()
        if table.weight is not None:
            paid *= table.weight[rows]
        total += float(paid.sum())
        squares += float(torch.dot(paid, paid))
    return total**2 / squares if squares > 0 else 0.0
