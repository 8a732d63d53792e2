"""Users that have rows in a split, as many as memory allows: those of the lowest hashes, as samples keep them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.stream.sample import SLACK, user_hash

Users = NDArray[np.int64]


class SeenUsers:
    """Different users whose hash is below a threshold; the same in any order and on any number of processes.

    Args:
        most: users held; in between ``SLACK`` times as many, of eight bytes each.

    Attributes:
        threshold: users of hashes below are all here; 1 until there are too many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.threshold = 1.0
        self._count = 0
        self._users: list[Users] = []

    def add(self, users: Users) -> None:
        """Take in different users."""
        if self.threshold < 1:
            users = users[user_hash(users) < self.threshold]
        self._users.append(users)
        self._count += len(users)
        if self._count > SLACK * self.most:
            self.users()

    def merge(self, other: SeenUsers) -> None:
        """Take in what another one has kept."""
        self.limit(other.threshold)
        for users in other._users:
            self.add(users)

    def limit(self, threshold: float) -> None:
        """Forget users of hashes from ``threshold`` on."""
        if threshold < self.threshold:
            self.threshold = threshold
            self._users = [users[user_hash(users) < threshold] for users in self._users]
            self._count = sum(map(len, self._users))

    def users(self) -> Users:
        """All of them, ascending, ``most`` at most; the threshold is then the one up to which they are complete."""
        users = np.unique(np.concatenate([np.empty(0, np.int64), *self._users]))
        self._users, self._count = [users], len(users)
        if len(users) > self.most:
            self.limit(float(np.partition(user_hash(users), self.most)[self.most]))
        return self._users[0]
