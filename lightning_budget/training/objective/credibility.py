"""How much of the goal a trial can carry: its gradient rests on the rows that paid."""

from __future__ import annotations

from lightning_budget.table import RCTTable


def paying_rows(table: RCTTable) -> float:
    """Effective number of rows that the observed value is spread over, between 1 and N; 0 where nothing was paid.

    With sample weights w and values v::

        n = (Σ w |v|)² / Σ (w v)²

    The number of buyers where all buy alike; fewer where a few pay most. Source: Kish 1965, of weights w |v|.

    Args:
        table: N rows, the training split.
    """
    paid = table.value.double().abs() if table.weight is None else (table.value.double() * table.weight).abs()
    squares = float(paid.square().sum())
    return float(paid.sum()) ** 2 / squares if squares > 0 else 0.0
