"""Every resample of a walk at once: each event is visited once and carried into all running sums."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from lightning_budget.metrics.functional.compiled import sweep as compiled
from lightning_budget.metrics.functional.poisson import EDGES, pair_keys
from lightning_budget.metrics.functional.walk import Walk


def sweep(walk: Walk, hashed: Tensor, budgets: Tensor, resamples: int, seed: int) -> Tensor:
    """Value at budgets ``[B]`` on R resamples, ``[R, B]``: :meth:`Walk.points` and ``first_crossing`` of each.

    E·R additions and no memory beyond R sums; a resample is looked at apart only where it passes a budget.

    Args:
        hashed: ``[N]`` of :func:`~lightning_budget.metrics.functional.poisson.user_hash`, on the CPU.
    """
    ascending, order = budgets.sort()
    ends = np.zeros(len(walk.row), np.bool_)
    ends[walk.end.numpy()] = True
    users = hashed.numpy().view(np.uint64)
    weight = np.ones(1) if walk.weight is None else walk.weight.numpy()
    mass = np.empty(0) if walk.mass is None else walk.mass.numpy()
    # Gathered beforehand: a cache miss per event would cost as much as its resamples.
    events = (hashed[walk.row].numpy().view(np.uint64), ends, mass, walk.value.numpy(), walk.cost.numpy())
    edges = tuple(np.uint16(edge) for edge in EDGES)
    out = np.empty((resamples, len(budgets)))

    def part(first: int, last: int) -> None:
        keys = np.array(pair_keys(seed, range(first // 2, (last + 1) // 2)), np.uint32)
        total = np.zeros(2 * len(keys))
        if walk.mass is None:
            compiled.totals(users, weight, keys, edges, total)
        total = np.maximum(total, walk.least)[: last - first]
        compiled.sweep(*events, keys, edges, total, 0.5 * walk.least, ascending.numpy(), out[first:last])

    threads = min(torch.get_num_threads(), resamples)
    size = -(-resamples // threads)
    size += size % 2  # two resamples share a hash
    cuts = [(first, min(first + size, resamples)) for first in range(0, resamples, size)]
    with ThreadPoolExecutor(len(cuts)) as pool:
        list(pool.map(lambda cut: part(*cut), cuts))
    found = torch.from_numpy(out)
    return torch.empty_like(found).index_copy_(1, order, found)
