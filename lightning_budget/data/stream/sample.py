"""A bounded sample of users with all their rows, the same in any order and on any number of processes.

Users whose hash, a number in (0, 1), is below a threshold are kept: the largest threshold with which the rows fit. The
hash knows nothing of a user but the name, so means over the sample are unbiased for those over all users.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lightning_budget.hashing import hashed_uniform

SLACK = 1.5
"""Rows are thrown out when there are so many times more than wanted."""


def user_hash(user: NDArray[np.int64]) -> NDArray[np.float64]:
    """``[n]`` in (0, 1)."""
    return hashed_uniform(user, 0, "sample")


class UserSample:
    """All rows of the users of the lowest hashes.

    Args:
        most: rows kept; of a user with more than that, if the hash is the lowest, all the same.

    Attributes:
        threshold: hashes below are kept; 1 until there are too many rows.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.threshold = 1.0
        self._count = 0
        self._rows: list[tuple[NDArray[np.float64], NDArray[np.int64], pa.Table]] = []

    def add(self, u: NDArray[np.float64], number: NDArray[np.int64], rows: pa.Table) -> None:
        """Take in rows; those of hashes from the threshold on may be left out beforehand.

        Args:
            u: ``[n]`` of their users, see :func:`user_hash`.
            number: ``[n]`` their numbers in the source.
            rows: n of them.
        """
        if self.threshold < 1:
            keep = u < self.threshold
            u, number, rows = u[keep], number[keep], rows.filter(pa.array(keep))
        if not len(u):
            return
        self._rows.append((u, number, rows))
        self._count += len(u)
        if self._count > SLACK * self.most:
            self._prune()

    def merge(self, other: UserSample) -> None:
        """Take in what another one, of as many rows at most, has kept."""
        self.limit(min(self.threshold, other.threshold))
        for part in other._rows:
            self.add(*part)

    def limit(self, threshold: float) -> None:
        """Leave out rows of hashes from ``threshold`` on."""
        self.threshold = threshold
        kept = [(u < threshold, u, number, rows) for u, number, rows in self._rows]
        self._rows = [(u[k], number[k], rows.filter(pa.array(k))) for k, u, number, rows in kept if k.any()]
        self._count = sum(len(u) for u, _, _ in self._rows)

    def finish(self) -> tuple[pa.Table, NDArray[np.int64]]:
        """The rows, in the order of their numbers, and these; the threshold is then the last one.

        Raises:
            ValueError: if none was ever given.
        """
        self._prune()
        number = np.concatenate([n for _, n, _ in self._rows])
        order = np.argsort(number, kind="stable")
        rows = pa.concat_tables([t for _, _, t in self._rows], promote_options="permissive")
        return rows.take(pa.array(order)), number[order]

    def _prune(self) -> None:
        if self._count <= self.most:
            return
        u = np.concatenate([u for u, _, _ in self._rows])
        # Nothing below it can be among the lowest: a user is kept whole or not at all.
        lowest = float(np.partition(u, self.most)[self.most])
        if not (u < lowest).any():
            lowest = float(np.nextafter(lowest, 1))
        self.limit(lowest)
