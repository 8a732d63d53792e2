"""Hand tensors to the compiled sums over a grid of multipliers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_budget.metrics.functional.compiled.grid import add_resamples, add_rows
from lightning_budget.metrics.functional.poisson import EDGES, pair_keys


def changes_of(
    interval: tuple[Tensor, Tensor],
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    weight: Tensor | None,
    shift: int,
    base: int,
    points: int,
) -> Tensor:
    """``[6, P]`` of ``grid.grid_changes``, for a grid that looks at the leading bits of floats."""
    sums = torch.zeros(points, 6, dtype=torch.float64)
    lower, upper = (x.numpy().view(np.int64) for x in interval)
    size = np.ones(1) if weight is None else weight.double().numpy()
    y, c, p = (x.detach().contiguous().numpy() for x in (value, cost, propensity))
    add_rows(lower, upper, size, p, y, c, shift, base, sums.numpy())
    return sums.T.contiguous()


def add_resamples_to(
    total: Tensor,
    changes: Tensor,
    hashed: Tensor,
    seed: int,
    first: Tensor,
    last: Tensor,
    mass: Tensor,
    value: Tensor,
    cost: Tensor,
    size: Tensor,
) -> None:
    """Add N rows, matched at points ``first <= k < last``, to ``total [R]`` and ``changes [P, 3, R]``, R even."""
    keys = np.array(pair_keys(seed, range(changes.shape[2] // 2)), np.uint32)
    users, edges = hashed.numpy().view(np.uint64), tuple(np.uint16(e) for e in EDGES)
    columns = [x.detach().contiguous().numpy() for x in (first, last, mass, value, cost, size)]
    f, t, m, y, c, s = columns
    add_resamples(users, f, t, m, y, c, s, keys, edges, total.numpy(), changes.numpy())
