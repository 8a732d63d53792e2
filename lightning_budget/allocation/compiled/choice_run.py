"""Hand tensors to the compiled policy."""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor

from lightning_budget.allocation.compiled import run
from lightning_budget.allocation.compiled.choice import choose_few, pitch_of
from lightning_budget.allocation.settled import tie_of

BLOCK = 512
"""Users of a block that is read where it lies."""

COPIED_BYTES = 1 << 12
"""Most bytes of a block that is copied first: beyond a page, reading value and cost by turns halts at every block."""


def choose(value: Tensor, cost: Tensor, multiplier: float) -> tuple[Tensor, bool]:
    """Arms ``[N]`` int64 of ``[K, N]``, K up to 8, and whether all are finite; see :func:`policy_treatment`."""
    arms, users = value.shape
    v, c, stride = run._memory(value, cost)
    direct = stride[1] == 1 and stride[3] == 1
    block = BLOCK if direct else _copied_block(arms * v.itemsize)
    apart = (stride[0], stride[2]) if direct else (pitch_of(block),) * 2
    places = tuple((np.uintp(j * apart[0]), np.uintp(j * apart[1])) for j in range(arms))
    with np.errstate(over="ignore", under="ignore"):
        q = tuple(v.dtype.type(x) for x in _weights(multiplier, v.itemsize))
    bound = multiplier if multiplier < sys.float_info.max else math.inf
    out = torch.empty(users, dtype=torch.int64)
    arm = out.numpy()
    finite = run._slices(users, lambda a, z: choose_few(v, c, stride, places, block, a, z, q, bound, arm))
    return out, all(finite)


def _copied_block(bytes_each: int) -> int:
    """A power of two that a vector divides, and few enough users for a page."""
    return min(max(1 << (COPIED_BYTES // bytes_each).bit_length() - 1, 64), 256)


def _weights(multiplier: float, itemsize: int) -> tuple[float, float, float, float, float]:
    """Of value and cost in a score; of costs in the size; of the size in the margin, and what is added to it.

    At the largest float costs alone are compared, which no rounding touches. NaN leads nowhere clearly.
    """
    tie, tiny, smallest = tie_of(itemsize)
    if multiplier >= sys.float_info.max:
        return 0.0, 1.0, 1.0, 0.0, 0.0
    by_cost = multiplier if multiplier == 0 or multiplier >= smallest else math.nan
    # A gain so small beside its price that the slope underflows to 0 is no lead, even for a free price of money.
    return 1.0, by_cost, max(by_cost, smallest), tie, tiny
