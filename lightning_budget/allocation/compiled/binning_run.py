"""Hand tensors to the compiled sums of steps."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from lightning_budget.allocation.compiled import run
from lightning_budget.allocation.compiled.binning import add_steps


def sums_of_steps(
    value: Tensor, cost: Tensor, size: int, shift: int, first: int, bins: int
) -> Iterator[tuple[Tensor, Tensor, bool]]:
    """Of each ``size`` users of ``[K, N]``: ``[2, bins]`` price and gain, ``[2, n]`` cost and value of cheapest arms.

    Yields:
        Both, and whether all numbers are finite; the same on any number of threads.
    """
    arms, users = value.shape
    v, c, stride = run._memory(value, cost)

    def work(start: int) -> tuple[Tensor, Tensor, bool]:
        stop = min(start + size, users)
        total, cheapest = np.zeros((bins, 2)), np.empty((2, stop - start))
        finite = add_steps(v, c, stride, arms, start, stop, shift, first, total, cheapest)
        return torch.from_numpy(total).T, torch.from_numpy(cheapest), finite

    starts, threads = range(0, users, size), torch.get_num_threads()
    return map(work, starts) if min(len(starts), threads) < 2 else run._pool(os.getpid(), threads).map(work, starts)
