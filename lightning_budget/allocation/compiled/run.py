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

from lightning_budget.allocation.compiled import scores
from lightning_budget.allocation.compiled.blocks import PITCH, pass_over_few
from lightning_budget.allocation.compiled.exact import choose, climb
from lightning_budget.allocation.compiled.few import BLOCK, MOST_ARMS
from lightning_budget.allocation.compiled.interval_sums import pass_over_intervals
from lightning_budget.allocation.compiled.intervals import WRITTEN
from lightning_budget.allocation.compiled.ordering import descending as order_of
from lightning_budget.allocation.compiled.slices import pass_over as pass_over_many
from lightning_budget.allocation.compiled.together import Slots, SpendCurve
from lightning_budget.allocation.settled import Settled, tie_of

T = TypeVar("T")
SLICE = 1 << 16
"""Fewest users of a slice, below which a thread costs more than it saves."""

ROOM = 1 << 13
"""Open users listed at once, per bracket."""

LISTED = 1 << 16
"""Steps listed at once."""

_PAD = 16


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


def _encode(brackets: list[tuple[float, float]], itemsize: int) -> NDArray[np.float64]:
    """See ``blocks``: an end at the largest float compares costs alone, which no rounding touches."""
    tie, tiny, smallest = tie_of(itemsize)
    rows = []
    for low, high in brackets:
        ends = [end if end == 0 or end >= smallest else np.nan for end in (low, high)]
        at_high = (0, 1, 0, 0) if high >= sys.float_info.max else (1, ends[1], tie, tiny)
        rows.append([ends[0], *at_high, tie, tiny])
    return np.array(rows, dtype=np.float64)


def _as_single(q: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore", under="ignore"):
        return q.astype(dtype)


def settle(value: Tensor, cost: Tensor, brackets: list[tuple[float, float]], arm: Tensor | None) -> list[Settled]:
    """See :func:`lightning_budget.allocation.settled.settle`."""
    arms, users = value.shape
    v, c, stride = _memory(value, cost)
    exact_q = _encode(brackets, v.itemsize)
    q, several = _as_single(exact_q, v.dtype), len(brackets)
    direct = None if arm is None else arm.contiguous()
    out = np.empty(0, np.int8) if direct is None else direct.numpy()
    bits = np.dtype(np.int32 if v.itemsize == 4 else np.int64)
    few = arms <= MOST_ARMS
    pass_over = _few(v, c, stride, arms, q, exact_q, bits) if few else _many(v, c, stride, arms, q, bits)

    def work(start: int, stop: int) -> tuple[Any, ...]:
        room = min(ROOM, stop - start)
        rows = np.empty((several, room), np.int64)
        # Rows of a power of two would fall into one cache set.
        open_v, open_c = (np.empty((several, arms, room + _PAD), v.dtype) for _ in range(2))
        sums, finite = np.zeros((several, 2, 2)), True
        kept: list[list[tuple[NDArray[Any], ...]]] = [[] for _ in brackets]
        at = start
        while at < stop:
            count = np.zeros(several, np.int64)
            at, all_finite = pass_over(at, stop, arm is not None, out, rows, open_v, open_c, count, sums)
            finite = finite and all_finite
            for b, n in enumerate(count):
                kept[b].append((rows[b, :n].copy(), open_v[b, :, :n].copy(), open_c[b, :, :n].copy()))
        return finite, kept, sums

    parts = _slices(users, work)
    if arm is not None and direct is not None and direct is not arm:
        arm.copy_(direct)
    finite = all(part[0] for part in parts)
    none = (np.empty(0, np.int64), np.empty((arms, 0), v.dtype), np.empty((arms, 0), v.dtype))
    found = []
    for b, (low, high) in enumerate(brackets):
        pieces = list(zip(none, *(piece for part in parts for piece in part[1][b]), strict=True))
        rows, open_v, open_c = (torch.from_numpy(np.concatenate(p, axis=-1)) for p in pieces)
        spend, worth = ([x for part in parts for x in part[2][b, i].tolist()] for i in range(2))
        found.append(Settled(low, high, rows, open_v, open_c, spend, worth, finite))
    return found


def _few(
    v: NDArray[Any],
    c: NDArray[Any],
    stride: NDArray[np.int64],
    arms: int,
    q: NDArray[Any],
    exact_q: NDArray[np.float64],
    bits: np.dtype[Any],
) -> Callable[..., tuple[int, bool]]:
    # Of the bits of a float64, those of a mantissa and of a block's size are spoken for.
    spare = 53 - 24 - (BLOCK.bit_length() - 1) if bits.itemsize == 4 else -1
    tie, tiny, _ = tie_of(8)
    offsets = tuple(np.uintp(j * stride[0]) for j in range(arms))
    in_piece = tuple(np.uintp(j * PITCH) for j in range(arms))
    mask = bits.type(np.iinfo(bits).max)
    fixed = (v, c, v.view(bits), c.view(bits), stride, offsets, in_piece)
    numbers = (q, exact_q, mask, spare, tie, tiny)
    return lambda start, stop, *lists: pass_over_few(*fixed, start, stop, *numbers, *lists)


def _many(
    v: NDArray[Any], c: NDArray[Any], stride: NDArray[np.int64], arms: int, q: NDArray[Any], bits: np.dtype[Any]
) -> Callable[..., tuple[int, bool]]:
    numbers = np.arange(arms).astype(v.dtype)

    def run(start: int, stop: int, *lists: Any) -> tuple[int, bool]:
        w = np.empty(scores.ROWS * scores.PITCH, v.dtype)
        return pass_over_many(v, c, stride, arms, start, stop, q, numbers, w, w.view(bits), *lists)

    return run


def spend_by_slope(value: Tensor, cost: Tensor, slots: Slots, is_open: NDArray[np.int8]) -> SpendCurve | None:
    """The curve of ``[K, N]`` with at most eight arms, and the steps in open slots; none where sizes are extreme."""
    arms, users = value.shape
    v, c, stride = _memory(value, cost)
    width = slots.count + 1
    lists = np.zeros(width, np.int8)
    lists[: len(is_open)] = is_open
    some = (0,) * min(n for n in WRITTEN if n >= arms)
    kind = slots.bits.type
    last = slots.edge_bits(slots.count)
    numbers = (kind(slots.first), kind(last), kind(slots.shift), kind(np.iinfo(kind).max), lists)

    def work(start: int, stop: int) -> tuple[Any, ...]:
        room = min(LISTED, arms * (stop - start + _PAD))
        rows, ends = np.empty(room, np.int32), np.empty(room, slots.bits)
        sums, fits, at = np.zeros((width, 2)), True, start
        kept: list[tuple[int, NDArray[np.int32], NDArray[Any]]] = []
        while at < stop and fits:
            before = at
            at, n, fits = pass_over_intervals(v, c, stride, arms, some, at, stop, *numbers, sums, rows, ends)
            kept.append((before, rows[:n].copy(), ends[:n].copy()))
        return fits, kept, sums

    parts = _slices(users, work)
    if not all(part[0] for part in parts):
        return None
    sums = np.zeros((width, 2))  # floats and what their rounding left out, by two-sum
    for part in parts:
        more = part[2]
        before, total = sums[:, 0], sums[:, 0] + more[:, 0]
        seen = total - before
        sums[:, 1] += more[:, 1] + ((before - (total - seen)) + (more[:, 0] - seen))
        sums[:, 0] = total
    return SpendCurve(sums, [piece for part in parts for piece in part[1]])


def policy(value: Tensor, cost: Tensor, multiplier: float) -> Tensor:
    """Arms ``[N]`` int64 of ``[K, N]``; see :func:`policy_treatment`."""
    arms, users = value.shape
    v, c, stride = _memory(value, cost)
    out = torch.empty(users, dtype=torch.int64)
    _slices(users, lambda a, z: choose(v, c, stride, arms, a, z, multiplier, out.numpy()))
    return out


def steps(value: Tensor, cost: Tensor, floor: float, ceiling: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Cheapest arm ``[N]``; user, arm, previous arm, slope ``[M]`` of steps in ``(floor, ceiling]``, users in order."""
    arms, users = value.shape
    v, c, stride = _memory(value, cost)
    first = np.empty(users, np.int64)

    def work(start: int, stop: int) -> tuple[NDArray[Any], ...]:
        most = (stop - start) * (arms - 1)
        who, to, before = (np.empty(most, np.int64) for _ in range(3))
        slope = np.empty(most)
        n = climb(v, c, stride, arms, start, stop, floor, ceiling, first, who, to, before, slope)
        return tuple(x[:n].copy() for x in (who, to, before, slope))

    parts = _slices(users, work)
    user, arm, previous, slope = (torch.from_numpy(np.concatenate(x)) for x in zip(*parts, strict=True))
    return torch.from_numpy(first), user, arm, previous, slope


def descending(slope: Tensor, key: Tensor | None) -> Tensor:
    """Positions ``[M]`` of float64 slopes at least 0, descending; equals by key, or as they stand."""
    ties = np.empty(0, np.int64) if key is None else key.contiguous().numpy()
    return torch.from_numpy(order_of(slope.contiguous().numpy().view(np.uint64), ties))
