"""Shares of users that hold within every arm: where the hashes of an arm's users are cut into train, val and test."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_BITS = 16


def first_ranks(users: NDArray[np.int64], ends: NDArray[np.float64]) -> NDArray[np.int64]:
    """``[K, 2]`` ranks from which on users are of val and of test: rank r is at (r + ½) / n of n users.

    Args:
        users: ``[K]`` of each arm.
        ends: ``[2]`` where train and val end, as shares of the users.
    """
    n = users[:, None]
    return np.clip(np.ceil(n * ends - 0.5), 0, n).astype(np.int64)


@dataclass(frozen=True, eq=False)
class ArmCuts:
    """What tells the split of a row from the hash of its user and the arm it was given.

    Attributes:
        bounds: ``[K, 2]`` uint64, hashes from which on users given an arm are of val and of test.
        others: ``[M]`` uint64, hashes of users for whom the bounds of an arm they were given do not hold, ascending.
        parts: ``[M]`` int8, their splits.
    """

    bounds: NDArray[np.uint64]
    others: NDArray[np.uint64]
    parts: NDArray[np.int8]

    def split(self, h: NDArray[np.uint64], arm: NDArray[np.int64]) -> NDArray[np.int8]:
        """``[N]`` 0 train, 1 val, 2 test, of hashes and arms ``[N]``."""
        val, test = np.ascontiguousarray(self.bounds.T)
        part = (h >= val.take(arm)).view(np.int8) + (h >= test.take(arm)).view(np.int8)
        if len(self.others):
            near = np.flatnonzero(self._near.take((h >> np.uint64(64 - _BITS)).view(np.int64)))
            place = np.searchsorted(self.others, h[near])
            there = self.others.take(place, mode="clip") == h[near]
            part[near[there]] = self.parts[place[there]]
        return part

    @cached_property
    def _near(self) -> NDArray[np.bool_]:
        """Whether one of ``others`` begins with these bits: few hashes do, as these users lie close to the bounds."""
        near = np.zeros(1 << _BITS, bool)
        near[self.others >> np.uint64(64 - _BITS)] = True
        return near
