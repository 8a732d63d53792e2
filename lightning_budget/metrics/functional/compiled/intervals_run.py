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
    multiplier, signed_row, order = _sorted(interval)
    row = torch.empty(len(order), dtype=torch.int64)
    mass, worth, paid = torch.empty(3, len(order), dtype=torch.float64)
    columns = (x.detach().contiguous().numpy() for x in (value, cost, propensity))
    changes_of(order.numpy(), signed_row, *columns, *(x.numpy() for x in (row, mass, worth, paid)))
    return multiplier[order], row, mass, worth, paid


def curve(
    interval: tuple[Tensor, Tensor], value: Tensor, cost: Tensor, propensity: Tensor, total: float, least: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiplier, spend and value ``[M]`` of the curve; see ``intervals.points_of``."""
    multiplier, signed_row, order = _sorted(interval)
    found = torch.empty(3, len(order), dtype=torch.float64)
    y, c, p = (x.detach().contiguous().numpy() for x in (value, cost, propensity))
    at, spend, worth = found.numpy()
    count = points_of(order.numpy(), multiplier.numpy(), signed_row, y, c, p, total, least, at, spend, worth)
    at, spend, worth = (x[:count].clone() for x in found)
    return at, spend, worth


def _sorted(interval: tuple[Tensor, Tensor]) -> tuple[Tensor, np.ndarray, Tensor]:
    lower, upper = interval
    multiplier, signed_row = events_of(lower.numpy(), upper.numpy())
    multiplier = torch.from_numpy(multiplier)
    return multiplier, signed_row, by_slope(multiplier)


def _memory(x: Tensor) -> np.ndarray:
    """Memory of a matrix from its first entry to its last."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((length,), (1,)).numpy()
