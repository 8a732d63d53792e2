"""The pass before the scan that finds where each arm's users are cut, as ranking all of them in memory does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.arm_cuts import ArmCuts, first_ranks
from lightning_budget.data.outcomes import treatment_of
from lightning_budget.data.screening import screened_part
from lightning_budget.data.splits import split_hash
from lightning_budget.data.stream.placed import placed
from lightning_budget.data.stream.trial_source import TrialSource
from lightning_budget.data.stream.user_arms import RangeUsers, UserArms
from lightning_budget.streaming.progress import progress
from lightning_budget.streaming.ranks import Ranks
from lightning_budget.streaming.source import Piece
from lightning_budget.streaming.threads import for_each

NEVER = np.uint64(2**64 - 1)
"""A bound that no user reaches."""
SORTERS = 8
"""Threads at most that sort ranges, of some 40 MB each."""


def arm_cuts(trial: TrialSource, folder: Path | None, threads: int, shown: bool, ranks: Ranks) -> ArmCuts:
    """The cuts with which every row gets the split that ranking all users in memory gives it.

    A user's arm is the first one of its rows, which a row does not tell where a user was given several. Bounds of arms
    of many users hardly differ, so that few of these users lie between them; they are listed, see :class:`ArmCuts`. The
    bounds of an arm of n users are some 1 / √n off, so an arm goes by those of the largest one, and its users are
    listed, where that makes fewer: with M users of several arms, about K M^⅔ are listed at most.

    Args:
        folder: for what memory does not hold; ``None``: the system's for temporary files.
        threads: pieces and ranges looked at together; shown: whether this process shows its progress.
        ranks: the processes that share the pieces; each gets the whole result.

    Raises:
        InputError: for rows without user or arm, naming file, row group and column, and for a disk without room.
    """
    with UserArms(len(trial.columns.arms), trial.source.rows, folder) as users:
        _collect(users, trial, threads, shown and ranks.rank == 0, ranks)
        return _Cutting(users, trial, threads, ranks).cuts()


def _collect(users: UserArms, trial: TrialSource, threads: int, shown: bool, ranks: Ranks) -> None:
    """The rows of this process's pieces."""
    columns = trial.columns
    whose = [*columns.dense, *columns.categorical, *columns.lists] if columns.user is None else [columns.user]
    names = [columns.treatment, *whose]
    if trial.exclude:
        names += [columns.value, columns.cost, columns.propensity_column, *columns.formula_columns]
    names = [name for name in trial.names if name in names]

    def add(piece: Piece) -> None:
        file = trial.read(piece, names)
        if trial.exclude:
            file, _ = screened_part(file, columns, trial.exclude)
        users.add(split_hash(file, columns, trial.rule), treatment_of(file, columns))

    mine = trial.source.pieces[ranks.rank :: ranks.size]
    share = sum(p.rows for p in mine) / max(trial.source.rows, 1)
    with progress("Ranking users by arm", trial.source.rows, 0, share, shown) as tell:

        def work(piece: Piece) -> None:
            placed(trial.source, piece, add)
            tell(piece.rows)

        ranks.each(lambda: for_each(mine, work, threads))
    users.finish()


class _Cutting:
    """K arms, R ranges."""

    def __init__(self, users: UserArms, trial: TrialSource, threads: int, ranks: Ranks) -> None:
        self.users, self.threads, self.ranks = users, threads, ranks
        self.arms = len(trial.columns.arms)
        self.ends = np.cumsum(trial.rule.shares)[:2]

    def cuts(self) -> ArmCuts:
        counts, several = self._counts()
        total = counts.sum(axis=0)
        own = self._bounds(counts)
        used = own.copy()
        used[(total == 0) | (several.sum() > total**1.5)] = own[total.argmax()]
        own[total == 0] = used[total == 0]
        return ArmCuts(used, *self._others(own, used, several))

    def _counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """``[R, K]`` users of each arm, and ``[R]`` users of several."""
        counts = np.zeros((self.users.ranges, self.arms), np.int64)
        several = np.zeros(self.users.ranges, np.int64)

        def count(number: int, found: RangeUsers) -> None:
            counts[number] = np.bincount(found.arms[found.first], minlength=self.arms)
            several[number] = found.several

        self._each_range(range(self.users.ranges), count)
        return counts, several

    def _bounds(self, counts: NDArray[np.int64]) -> NDArray[np.uint64]:
        """``[K, 2]`` hashes of the first users of val and of test among those of each arm."""
        upto = np.cumsum(counts, axis=0)
        rank = first_ranks(upto[-1], self.ends)
        bounds = np.full((self.arms, 2), NEVER)
        wanted: dict[int, list[tuple[int, int, int]]] = {}
        for arm, cut in zip(*np.nonzero(rank < upto[-1][:, None]), strict=True):
            number = int(np.searchsorted(upto[:, arm], rank[arm, cut], side="right"))
            before = upto[number, arm] - counts[number, arm]
            wanted.setdefault(number, []).append((arm, cut, rank[arm, cut] - before))

        def look_up(number: int, found: RangeUsers) -> None:
            for arm, cut, place in wanted[number]:
                bounds[arm, cut] = found.hashes[found.first & (found.arms == arm)][place]

        self._each_range(wanted, look_up)
        return bounds

    def _others(
        self, own: NDArray[np.uint64], used: NDArray[np.uint64], several: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint64], NDArray[np.int8]]:
        """Users whom the bounds used for one of their arms would split otherwise than those of their own arm."""
        true, guess = (ArmCuts(b, np.empty(0, np.uint64), np.empty(0, np.int8)) for b in (own, used))
        between: set[int] = set()
        if several.any():
            for low, high in zip(own.min(axis=0), own.max(axis=0), strict=True):
                between |= set(range(self.users.range_of(low), self.users.range_of(high) + 1))
        others: dict[int, tuple[NDArray[np.uint64], NDArray[np.int8]]] = {}

        def look_for(number: int, found: RangeUsers) -> None:
            user = np.cumsum(found.first) - 1
            h, part = found.hashes[found.first], true.split(found.hashes, found.arms)[found.first]
            off = np.unique(user[guess.split(found.hashes, found.arms) != part[user]])
            others[number] = h[off], part[off]

        self._each_range(sorted(between), look_for)
        found = [others[number] for number in sorted(others)]
        return (
            np.concatenate([np.empty(0, np.uint64), *(h for h, _ in found)]),
            np.concatenate([np.empty(0, np.int8), *(part for _, part in found)]),
        )

    def _each_range(self, numbers: Iterable[int], look: Callable[[int, RangeUsers], None]) -> None:
        """Show the users of some ranges, of all processes together, to each of these."""

        def one(number: int) -> None:
            keys = np.concatenate(self.ranks.each(lambda: self.users.keys(number)))
            look(number, self.users.users(number, keys))

        # Processes meet range by range.
        for_each(numbers, one, min(self.threads, SORTERS) if self.ranks.size == 1 else 1)
