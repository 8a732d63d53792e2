"""Hand tensors to the compiled pass over intervals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_budget.allocation.order import by_slope
from lightning_budget.metrics.functional.compiled.intervals import changes_of, events_of, matched_intervals, points_of


def matched(value_hat: Tensor, cost_hat: Tensor, treatment: Tensor) -> tuple[Tensor, Tensor] | None:
    """Lower and upper multipliers ``[N]`` of ``matched_interval``; none where a prediction is not finite."""
    rows, arms = value_hat.shape
    strides = np.array([*value_hat.stride()[::-1], *cost_hat.stride()[::-1]])
    lower, upper = torch.empty(2, rows, dtype=torch.float64)
    v, c = (_memory(x.detach()) for x in (value_hat, cost_hat))
    given = treatment.long().contiguous().numpy()
    finite = matched_intervals(v, c, strides, arms, given, lower.numpy(), upper.numpy())
    return (lower, upper) if finite else None


def events(
    interval: tuple[Tensor, Tensor], value: Tensor, cost: Tensor, propensity: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Multiplier, row, and changes of mass, value and cost of every event, by falling multiplier; ``[E]`` each."""
    order, unsorted_row, change = _sorted(interval, value, cost, propensity)
    row = torch.empty(len(order), dtype=torch.int64)
    multiplier, mass, worth, paid = torch.empty(4, len(order), dtype=torch.float64)
    changes_of(order.numpy(), unsorted_row, change, *(x.numpy() for x in (multiplier, row, mass, worth, paid)))
    return multiplier, row, mass, worth, paid


def curve(
    interval: tuple[Tensor, Tensor], value: Tensor, cost: Tensor, propensity: Tensor, total: float, least: float
) -> list[Tensor]:
    """Multiplier, spend and value ``[M]`` of the curve; see ``intervals.points_of``."""
    order, _, change = _sorted(interval, value, cost, propensity)
    return [torch.from_numpy(x) for x in points_of(order.numpy(), change, total, least)]


def _sorted(
    interval: tuple[Tensor, Tensor], value: Tensor, cost: Tensor, propensity: Tensor
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Order ``[E]`` of the events by falling multiplier; their rows and changes, unsorted."""
    lower, upper, y, c, p = (x.detach().contiguous().numpy() for x in (*interval, value, cost, propensity))
    multiplier, row, change = events_of(lower, upper, y, c, p)
    return by_slope(torch.from_numpy(multiplier)), row, change


def _memory(x: Tensor) -> np.ndarray:
    """Memory of a matrix from its first entry to its last."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((length,), (1,)).numpy()
