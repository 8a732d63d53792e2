"""Which arms every user was given: more users than memory holds, sorted by hash a range at a time.

Users whose hashes begin with the same bits make a range. A user and an arm are one number, a key: the other bits of the
hash and, in the place of those that the range tells, the arm::

    hash  [ range | other bits ]   →   key  [ other bits | arm ]

so that the sorted keys of a range are its users in the order of their hashes, each beginning with its first arm.
"""

from __future__ import annotations

import os
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lightning_budget.errors import InputError

Hashes = NDArray[np.uint64]

HELD = 1 << 21
"""Keys in memory before they go to the disk, eight bytes each there."""
RANGE_KEYS = 1 << 20
"""Of a range, about, where there are so many that 256 ranges hold more."""
CROWDED = 4
"""Where a range holds so many times its share of the keys, some users come very often: each is then kept once."""


@dataclass(frozen=True)
class RangeUsers:
    """The n users of a range in the order of their hashes, with all arms they were given.

    Attributes:
        hashes, arms: ``[m]`` a user and an arm each, every one once, in the order of both.
        first: ``[m]`` whether it is the user's first arm.
    """

    hashes: Hashes
    arms: NDArray[np.int64]
    first: NDArray[np.bool_]

    @property
    def several(self) -> int:
        """Users of several arms."""
        return int((self.first[:-1] & ~self.first[1:]).sum())


class UserArms:
    """Users and arms by the range of the user's hash. What memory does not hold lies in a file without a name.

    ``with`` it, and the file is gone when the block ends, or the process does.

    Args:
        arms: K.
        rows: that come at most.
        folder: for the file; ``None``: the system's for temporary files.

    Attributes:
        ranges: how many there are; the same for equal ``arms`` and ``rows``.
    """

    def __init__(self, arms: int, rows: int, folder: Path | None = None) -> None:
        self._bits = max(8, (arms - 1).bit_length(), (rows // RANGE_KEYS).bit_length())
        self.ranges = 1 << self._bits
        self._dtype = np.uint16 if self._bits <= 16 else np.uint32
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._held: list[tuple[Hashes, NDArray[np.unsignedinteger]]] = []
        self._count = self._written = 0
        self._blocks: list[tuple[int, NDArray[np.int64]]] = []
        self._last = np.empty(0, np.uint64), np.zeros(self.ranges + 1, np.int64)
        self._alone = threading.Lock()

    def __enter__(self) -> UserArms:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, h: Hashes, arm: NDArray[np.int64]) -> None:
        """Take in rows, by the hashes ``[N]`` of their users, and arms ``[N]``; from any thread.

        Raises:
            InputError: if there is no room on the disk.
        """
        with self._alone:
            self._held.append((h, arm.astype(self._dtype)))
            self._count += len(h)
            if self._count >= HELD:
                self._write()

    def finish(self) -> None:
        """Nothing comes any more."""
        self._last = self._keys()

    def keys(self, number: int) -> Hashes:
        """All keys of a range, in any order and maybe several times; after :meth:`finish`, from any thread.

        Raises:
            InputError: if the file cannot be read.
        """
        keys, starts = self._last
        parts = [keys[starts[number] : starts[number + 1]]]
        for offset, starts in self._blocks:
            count = int(starts[number + 1] - starts[number])
            if count:
                parts.append(self._read(offset + int(starts[number]), count))
        return np.concatenate(parts)

    def users(self, number: int, keys: Hashes) -> RangeUsers:
        """What the keys of a range, those of other processes too, tell; they are written over."""
        keys = _distinct(keys)
        shift, most = np.uint64(self._bits), np.uint64(64 - self._bits)
        arms = (keys & np.uint64(self.ranges - 1)).astype(np.int64)
        keys >>= shift
        first = np.ones(len(keys), bool)
        np.not_equal(keys[1:], keys[:-1], out=first[1:])
        keys |= np.uint64(number) << most
        return RangeUsers(keys, arms, first)

    def range_of(self, h: np.uint64) -> int:
        """Number of the range of a hash."""
        return int(h) >> (64 - self._bits)

    def _keys(self) -> tuple[Hashes, NDArray[np.int64]]:
        """Those held in the order of their ranges, and where ranges begin; none is held afterwards."""
        h = np.concatenate([np.empty(0, np.uint64), *(users for users, _ in self._held)])
        arm = np.concatenate([np.empty(0, self._dtype), *(arms for _, arms in self._held)])
        self._held, self._count = [], 0
        number = (h >> np.uint64(64 - self._bits)).astype(self._dtype)
        counts = np.bincount(number, minlength=self.ranges)
        h <<= np.uint64(self._bits)
        h |= arm
        keys = h[np.argsort(number, kind="stable")]
        if counts.max() > CROWDED * len(keys) / self.ranges:
            parts = [_distinct(part) for part in np.split(keys, np.cumsum(counts)[:-1])]
            keys, counts = np.concatenate(parts), np.array([len(part) for part in parts])
        return keys, np.concatenate([[0], np.cumsum(counts)])

    def _write(self) -> None:
        keys, starts = self._keys()
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
            view = keys.data.cast("B")
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as e:
            raise self._refused("written", e) from e
        self._blocks.append((self._written, starts))
        self._written += len(keys)

    def _read(self, start: int, count: int) -> Hashes:
        assert self._file is not None
        try:
            found = os.pread(self._file.fileno(), 8 * count, 8 * start)
        except OSError as e:
            raise self._refused("read", e) from e
        return np.frombuffer(found, np.uint64, count)

    def _refused(self, done: str, error: OSError) -> InputError:
        return InputError(
            f"users and their arms cannot be {done} in {self._folder or tempfile.gettempdir()}: {error.strerror}",
            "room for eight bytes a row, while the rows are looked through for stratify",
            "set data.cache to a folder with more room, or stratify=false",
        )


def _distinct(x: Hashes) -> Hashes:
    """Ascending; ``x`` is sorted meanwhile, which takes a quarter of the time of ``np.unique``."""
    x.sort()
    new = np.ones(len(x), bool)
    np.not_equal(x[1:], x[:-1], out=new[1:])
    return x if new.all() else x[new]
