"""Calibration collected over batches and processes in memory that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.calibration import (
    Calibration,
    as_edges,
    calibration_of,
    calibration_sums,
)


class BinnedCalibration(Metric):
    """Predicted against observed outcome of every arm, in bins between fixed edges.

    Keeps ``[K, Q, 9]`` sums, so that rows stream through and processes add up. A row seen twice counts twice: give rows
    that only fill up a batch the weight 0.

    Args:
        edges: ``[Q − 1]`` ascending, such as quantiles of the predictions on the training split.
        num_treatments: K.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        InputError: if the edges do not ascend or K is below 1.

    Source: :func:`lightning_budget.metrics.functional.calibration`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    edges: Tensor
    sums: Tensor

    def __init__(self, edges: Sequence[float] | Tensor, num_treatments: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_treatments < 1:
            raise InputError(f"num_treatments={num_treatments}", "at least 1", "count control as an arm")
        self.register_buffer("edges", as_edges(edges), persistent=False)
        empty = torch.zeros(num_treatments, len(self.edges) + 1, 9, dtype=torch.float64)
        self.add_state("sums", default=empty, dist_reduce_fx="sum")

    def update(
        self,
        prediction: Tensor,
        treatment: Tensor,
        outcome: Tensor,
        propensity: Tensor,
        weight: Tensor | None = None,
    ) -> None:
        """Add a batch: predictions ``[n, K]``; the arm given, the outcome under it, its propensity and weight ``[n]``.

        Raises:
            InputError: on rows that :func:`calibration` refuses.
        """
        if prediction.ndim != 2 or prediction.shape[1] != len(self.sums):
            raise InputError(
                f"prediction has shape {list(prediction.shape)}",
                f"[n, {len(self.sums)}]",
                "give one column per treatment, control first",
            )
        self.sums += calibration_sums(prediction, treatment, outcome, propensity, self.edges, weight)

    def compute(self) -> Calibration:
        """Calibration of all rows, NaN where there are too few."""
        return calibration_of(self.sums)
