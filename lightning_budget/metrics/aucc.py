"""AUCC collected over batches and processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_budget.metrics.functional.aucc import aucc
from lightning_budget.metrics.rows import RowMetric, ones


class AUCC(RowMetric):
    """Area under the cost curve of a ranking of one arm against control; keeps all rows (:class:`RowMetric`).

    Args:
        arm: the arm compared with control; may be left out if 1 is the only one.
        parts: Q, the number of steps of the spend.
        kwargs: of :class:`torchmetrics.Metric`.

    Source: :func:`lightning_budget.metrics.functional.aucc`.
    """

    def __init__(self, arm: int | None = None, parts: int = 200, **kwargs: Any) -> None:
        super().__init__(("score", "treatment", "value", "cost", "weight"), **kwargs)
        self.arm = arm
        self.parts = parts

    def update(
        self,
        score: Tensor,
        treatment: Tensor,
        value: Tensor,
        cost: Tensor,
        row: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        """Keep a batch ``[n]``: what to rank by (:func:`predicted_roi`), the arm given, outcomes, position, weight."""
        self.keep(score=score, treatment=treatment, value=value, cost=cost, row=row, weight=ones(weight, row))

    def compute(self) -> Tensor:
        """Float64 scalar.

        Raises:
            InputError: if no row was kept, or on rows that :func:`aucc` refuses.
        """
        return aucc(**self.rows(), arm=self.arm, parts=self.parts)
