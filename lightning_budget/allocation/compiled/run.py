"""Hand tensors to the compiled passes, slice by slice on torch's number of threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.allocation.compiled.exact import choose, climb
from lightning_budget.allocation.compiled.scores import PITCH, ROWS
from lightning_budget.allocation.compiled.slices import pass_over
from lightning_budget.allocation.settled import Settled, tie_of

T = TypeVar("T")
SLICE = 1 << 16
"""Fewest users of a slice, below which a thread costs more than it saves."""


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    del process  # a forked process has no threads of its parent's pool
    return ThreadPoolExecutor(threads, "allocation")


def _slices(users: int, work: Callable[[int, int], T]) -> list[T]:
    threads = torch.get_num_threads()
    size = max(SLICE, -(-users // (4 * threads)))
    size += -size % 64
    cuts = [(a, min(a + size, users)) for a in range(0, max(users, 1), size)]
    if len(cuts) < 2 or threads < 2:
        return [work(*cut) for cut in cuts]
    return list(_pool(os.getpid(), threads).map(lambda cut: work(*cut), cuts))


def _flat(x: Tensor) -> tuple[NDArray[Any], int, int]:
    """Memory of ``[K, N]`` from its first entry to its last, and the strides of arms and users."""
    arms, users = x.shape
    by_arm, by_user = x.stride()
    length = (arms - 1) * by_arm + (users - 1) * by_user + 1 if users else 0
    return x.detach().as_strided((length,), (1,)).numpy(), by_arm, by_user


def _memory(value: Tensor, cost: Tensor) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    v, *strides_v = _flat(value)
    c, *strides_c = _flat(cost)
    return v, c, np.array([*strides_v, *strides_c], dtype=np.int64)


def _encode(brackets: list[tuple[float, float]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """See ``scores``: an end at the largest float compares costs alone, which no rounding touches."""
    tie, tiny, smallest = tie_of(dtype.itemsize)
    rows = []
    for low, high in brackets:
        ends = [end if end == 0 or end >= smallest else np.nan for end in (low, high)]
        at_high = (0, 1, 0, 0) if high >= sys.float_info.max else (1, ends[1], tie, tiny)
        rows.append([ends[0], *at_high, tie, tiny, 0])
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=np.float64).astype(dtype)


def settle(value: Tensor, cost: Tensor, brackets: list[tuple[float, float]], arm: Tensor | None) -> list[Settled]:
    """See :func:`lightning_budget.allocation.settled.settle`."""
    arms, users = value.shape
    v, c, stride = _memory(value, cost)
    q, numbers = _encode(brackets, v.dtype), np.arange(arms).astype(v.dtype)
    out = np.empty(0, np.int8) if arm is None else arm.numpy()
    several, bits = len(brackets), np.int32 if v.itemsize == 4 else np.int64

    def work(start: int, stop: int) -> tuple[Any, ...]:
        size = stop - start
        rows = np.empty((several, size), np.int64)
        w = np.empty(ROWS * PITCH, v.dtype)
        open_v, open_c = np.empty((several, arms, size), v.dtype), np.empty((several, arms, size), v.dtype)
        count, sums = np.zeros(several, np.int64), np.zeros((several, 2, 2))
        finite = pass_over(
            v,
            c,
            stride,
            arms,
            start,
            stop,
            q,
            numbers,
            w,
            w.view(bits),
            arm is not None,
            out,
            rows,
            open_v,
            open_c,
            count,
            sums,
        )
        kept = [(rows[b, :n].copy(), open_v[b, :, :n].copy(), open_c[b, :, :n].copy()) for b, n in enumerate(count)]
        return finite, kept, sums

    parts = _slices(users, work)
    finite = all(part[0] for part in parts)
    return [
        Settled(
            low=low,
            high=high,
            rows=torch.from_numpy(np.concatenate([part[1][b][0] for part in parts])),
            value=torch.from_numpy(np.concatenate([part[1][b][1] for part in parts], axis=1)),
            cost=torch.from_numpy(np.concatenate([part[1][b][2] for part in parts], axis=1)),
            spend=[x for part in parts for x in part[2][b, 0].tolist()],
            worth=[x for part in parts for x in part[2][b, 1].tolist()],
            finite=finite,
        )
        for b, (low, high) in enumerate(brackets)
    ]


def policy(value: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """Arms ``[N]`` int64 of ``[K, N]``; see :func:`policy_treatment`."""
    arms, users = value.shape
    v, c, stride = _memory(value, cost)
    out = torch.empty(users, dtype=torch.int64)
    _slices(users, lambda a, z: choose(v, c, stride, arms, a, z, multiplier, out.numpy()))
    return out


def steps(value: Tensor, cost: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cheapest arm ``[N]``; user, arm, previous arm and slope ``[M]`` of every step, users in order."""
    arms, users = value.shape
    v, c, stride = _memory(value, cost)
    first = np.empty(users, np.int64)

    def work(start: int, stop: int) -> tuple[NDArray[Any], ...]:
        most = (stop - start) * (arms - 1)
        who, to, before = (np.empty(most, np.int64) for _ in range(3))
        slope = np.empty(most)
        n = climb(v, c, stride, arms, start, stop, first, who, to, before, slope)
        return tuple(x[:n].copy() for x in (who, to, before, slope))

    parts = _slices(users, work)
    user, arm, previous, slope = (torch.from_numpy(np.concatenate(x)) for x in zip(*parts, strict=True))
    return torch.from_numpy(first), user, arm, previous, slope
