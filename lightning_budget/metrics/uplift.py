"""AUUC and Qini coefficient collected over batches and processes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_budget.metrics.functional.uplift_curve import RankingArea, auuc, qini
from lightning_budget.metrics.rows import RowMetric, ones


class _Area(RowMetric):
    name: str

    def __init__(self, arm: int | None = None, **kwargs: Any) -> None:
        super().__init__(("score", "treatment", "outcome", "weight"), **kwargs)
        self.arm = arm

    def update(
        self, score: Tensor, treatment: Tensor, outcome: Tensor, row: Tensor, weight: Tensor | None = None
    ) -> None:
        """Keep a batch ``[n]``: predicted uplift, arm given, outcome under it, position in the split, weight."""
        self.keep(score=score, treatment=treatment, outcome=outcome, row=row, weight=ones(weight, row))

    def _named(self, area: RankingArea) -> dict[str, Tensor]:
        return {f"{self.name}/{part}": x for part, x in area._asdict().items()}


class AUUC(_Area):
    """Area under the uplift curve of one arm against control; keeps all rows (:class:`RowMetric`).

    Args:
        arm: the arm compared with control; may be left out if 1 is the only one.
        kwargs: of :class:`torchmetrics.Metric`.

    Source: :func:`lightning_budget.metrics.functional.auuc`.
    """

    name = "auuc"

    def compute(self) -> dict[str, Tensor]:
        """``auuc/area``, ``auuc/above_random`` and ``auuc/normalized``, float64 scalars (:class:`RankingArea`).

        Raises:
            InputError: if no row was kept, or on rows that :func:`auuc` refuses.
        """
        return self._named(auuc(**self.rows(), arm=self.arm))


class Qini(_Area):
    """Area under the Qini curve of one arm against control; keeps all rows (:class:`RowMetric`).

    Args:
        arm: the arm compared with control; may be left out if 1 is the only one.
        kwargs: of :class:`torchmetrics.Metric`.

    Source: :func:`lightning_budget.metrics.functional.qini`.
    """

    name = "qini"

    def compute(self) -> dict[str, Tensor]:
        """``qini/area``, ``qini/above_random`` and ``qini/normalized``, float64 scalars (:class:`RankingArea`).

        Raises:
            InputError: if no row was kept, or on rows that :func:`qini` refuses.
        """
        return self._named(qini(**self.rows(), arm=self.arm))
