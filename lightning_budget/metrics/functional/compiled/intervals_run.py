"""Hand tensors to the compiled pass over intervals."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_budget.metrics.functional.compiled.intervals import matched_intervals


def matched(value_hat: Tensor, cost_hat: Tensor, treatment: Tensor) -> tuple[Tensor, Tensor] | None:
    """Lower and upper multipliers ``[N]`` of ``matched_interval``; none where a prediction is not finite."""
    rows, arms = value_hat.shape
    strides = np.array([*value_hat.stride()[::-1], *cost_hat.stride()[::-1]])
    lower, upper = torch.empty(2, rows, dtype=torch.float64)
    v, c = (_memory(x.detach()) for x in (value_hat, cost_hat))
    given = treatment.long().contiguous().numpy()
    finite = matched_intervals(v, c, strides, arms, given, lower.numpy(), upper.numpy())
    return (lower, upper) if finite else None


def _memory(x: Tensor) -> np.ndarray:
    """Memory of a matrix from its first entry to its last."""
    length = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((length,), (1,)).numpy()
