"""Hand a ranking to the compiled sweeps: each row is visited once and carried into the sums of all resamples."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.metrics.functional.compiled import ranking as compiled
from lightning_budget.metrics.functional.poisson import EDGES, pair_keys
from lightning_budget.metrics.functional.ranking import Ranking

_RESAMPLES = 256
"""Resamples of one sweep: their sums stay in the nearest cache."""
_EDGES = tuple(np.uint16(edge) for edge in EDGES)

Floats = NDArray[np.float64]


class Totals(NamedTuple):
    """Of R resamples: ``sums`` ``[2, 4, R]`` and ``row`` ``[R]`` of ``ranking.totals``."""

    sums: Floats
    row: Floats


def totals(
    ranking: Ranking, hashed: Tensor, weight: Tensor, value: Tensor, cost: Tensor, resamples: int, seed: int
) -> Totals:
    """Sums over the rows of a ranking in every resample, which belong to its rows, whatever their order.

    Args:
        ranking: of n of N rows.
        hashed: ``[N]`` of ``user_hash``.
        weight, value, cost: ``[N]`` float64.
    """
    signed = bool((cost < 0).any())
    rows = _rows(ranking, hashed, weight)
    paid, worth = _taken(ranking, weight * cost), _taken(ranking, weight * value)
    even = resamples + resamples % 2
    sums, row = np.zeros((2, 4, even)), np.ones(even)

    def part(first: int, last: int, keys: NDArray[np.uint32]) -> None:
        last = first + 2 * len(keys)
        found = np.zeros((2, 4, last - first))
        least = np.ones(last - first)
        compiled.totals(rows.hashed, rows.treated, rows.weight, paid, worth, signed, keys, _EDGES, found, least)
        sums[:, :, first:last], row[first:last] = found, least

    _in_parts(part, resamples, seed)
    if not signed:
        sums[:, 3] = sums[:, 1]
    return Totals(sums[:, :, :resamples], row[:resamples])


def cut_rewards(
    ranking: Ranking,
    hashed: Tensor,
    weight: Tensor,
    value: Tensor,
    cost: Tensor,
    total: Totals,
    parts: int,
    rounding: float,
    seed: int,
) -> Tensor:
    """Mean of the points of ``reward_curve`` on R resamples, ``[R]``; arguments as :func:`totals`."""
    rows = _rows(ranking, hashed, weight)
    paid, worth = _taken(ranking, weight * cost), _taken(ranking, weight * value)
    ends = _ends(ranking)
    (control, arm), row = total.sums, total.row
    # Δ times N_1 N_0: ratios stay, and whole numbers add up without rounding.
    scale = np.stack([-arm[0], control[0]])
    gains = np.stack([control[0] * arm[k] - arm[0] * control[k] for k in (1, 2)])
    slack = rounding * (control[0] * arm[3] + arm[0] * control[3])
    out = np.empty(len(row))

    def part(first: int, last: int, keys: NDArray[np.uint32]) -> None:
        cut = slice(first, last)
        columns = (rows.hashed, ends, rows.treated, rows.weight, paid, worth)
        change, gain = np.ascontiguousarray(scale[:, cut]), np.ascontiguousarray(gains[:, cut])
        compiled.cut_rewards(*columns, change, gain, slack[cut], row[cut], parts, keys, _EDGES, out[cut])

    _in_parts(part, len(row), seed)
    cuts, reward = torch.from_numpy(out), torch.from_numpy(gains[1])
    return (cuts + reward) / (reward * (parts + 1))


def uplift_areas(
    ranking: Ranking, hashed: Tensor, weight: Tensor, outcome: Tensor, resamples: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Areas under the uplift curve, and above random under the Qini curve, of R resamples, ``[R]`` each."""
    rows, ends, y = _rows(ranking, hashed, weight), _ends(ranking), _taken(ranking, outcome)
    uplift, qini = np.empty(resamples), np.empty(resamples)

    def part(first: int, last: int, keys: NDArray[np.uint32]) -> None:
        columns = (rows.hashed, ends, rows.treated, rows.weight, y)
        compiled.uplift_areas(*columns, keys, _EDGES, uplift[first:last], qini[first:last])

    _in_parts(part, resamples, seed)
    return torch.from_numpy(uplift), torch.from_numpy(qini)


class _Rows(NamedTuple):
    hashed: NDArray[np.uint64]
    treated: NDArray[np.bool_]
    weight: Floats


def _rows(ranking: Ranking, hashed: Tensor, weight: Tensor) -> _Rows:
    # Gathered beforehand: a cache miss per row would cost as much as its resamples.
    return _Rows(
        ranking.take(hashed).numpy().view(np.uint64), ranking.treated.contiguous().numpy(), _taken(ranking, weight)
    )


def _taken(ranking: Ranking, column: Tensor) -> Floats:
    return ranking.take(column).numpy()


def _ends(ranking: Ranking) -> NDArray[np.bool_]:
    ends = np.zeros(len(ranking.row), np.bool_)
    ends[ranking.end.numpy()] = True
    return ends


def _in_parts(part: Callable[[int, int, NDArray[np.uint32]], None], resamples: int, seed: int) -> None:
    """Call ``part(first, last, keys)`` for runs of resamples, several at a time in threads."""
    threads = min(torch.get_num_threads(), resamples)
    size = min(-(-resamples // threads), _RESAMPLES)
    size += size % 2  # two resamples share a hash
    cuts = [(first, min(first + size, resamples)) for first in range(0, resamples, size)]

    def run(cut: tuple[int, int]) -> None:
        part(*cut, np.array(pair_keys(seed, range(cut[0] // 2, (cut[1] + 1) // 2)), np.uint32))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, cuts))
