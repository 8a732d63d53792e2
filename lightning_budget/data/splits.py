"""Which split a row belongs to: by user, by time, or as the file says.

=========  ==========================================================  =============================================
rule       a row goes to                                               users
=========  ==========================================================  =============================================
``user``   where the hash of its user, a number in (0, 1), falls       never in two splits
           among the shares
``time``   train before the first boundary, val from there up to the   may come again later: counted in a warning,
           second, test from the second on                             refused or left out, as ``straddling`` says
``given``  what its label says                                         refused in two splits unless told otherwise
=========  ==========================================================  =============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.arm_cuts import ArmCuts, first_ranks
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.compiled import usable
from lightning_budget.data.files import File
from lightning_budget.data.outcomes import treatment_of
from lightning_budget.data.times import Boundary, boundary_of, times_of
from lightning_budget.errors import InputError
from lightning_budget.hashing import hash_ids, hashed_uniform, key_of

SPLITS = ("train", "val", "test")
Straddling = Literal["refuse", "warn", "drop"]


@dataclass(frozen=True)
class SplitRule:
    """How rows are split into train, val and test; one of three rules.

    Args:
        shares: of the users, for train, val and test; they sum to 1.
        seed: names the split by user.
        stratify: the shares hold within every arm, to the user: within the users of an arm (of several, the first in
            the order of ``arms``) those of the lowest hashes train. A function of all rows, so that a user's split can
            change when others join, and a row tells it only beside :class:`ArmCuts`.
        boundaries: two points of ``TableColumns.time``: numbers, or dates and times (ISO 8601; without zone: UTC); from
            each on the next split begins. Sets the rule ``time``.
        column: of labels ``train``, ``val`` and ``test``. Sets the rule ``given``.
        straddling: what to do with users in two splits, for the rules ``time`` (default ``warn``) and ``given``
            (default ``refuse``): ``refuse``; ``warn``, counting them; ``drop`` a user's rows from all splits but its
            first in the order train, val, test.

    Raises:
        InputError: if the parts do not fit together.
    """

    shares: tuple[float, ...] = (0.6, 0.2, 0.2)
    seed: int = 0
    stratify: bool = False
    boundaries: tuple[Boundary, ...] | None = None
    column: str | None = None
    straddling: Straddling | None = None

    def __post_init__(self) -> None:
        if len(self.shares) != 3 or not all(s >= 0 for s in self.shares) or not abs(sum(self.shares) - 1) <= 1e-6:
            raise InputError(
                f"split={list(self.shares)}",
                "three shares ≥ 0 that sum to 1 (train, val, test)",
                "e.g. [0.6, 0.2, 0.2]",
            )
        if self.boundaries is not None and self.column is not None:
            raise InputError(
                f"a split by boundaries={list(self.boundaries)} and by column {self.column!r}",
                "one rule",
                "remove one of the two",
            )
        if self.boundaries is not None:
            _check_boundaries(self.boundaries)
        if self.by != "user" and self.stratify:
            raise InputError("stratify in a split that is not by user", "stratify=false", "remove it")
        if self.by == "user" and self.straddling is not None:
            raise InputError(
                f"straddling={self.straddling!r} in a split by user", "null: no user straddles", "remove it"
            )
        if self.straddling not in (None, *get_args(Straddling)):
            raise InputError(f"straddling={self.straddling!r}", ", ".join(get_args(Straddling)), "name one of them")

    @property
    def by(self) -> Literal["user", "time", "given"]:
        """Which rule it is."""
        return "time" if self.boundaries is not None else "given" if self.column is not None else "user"

    @property
    def of_row_alone(self) -> bool:
        """A row's split follows from the row alone."""
        return not self.stratify and (self.by == "user" or self.on_straddling != "drop")

    @property
    def on_straddling(self) -> Straddling:
        """``straddling``, or the rule's default."""
        return self.straddling or ("warn" if self.by == "time" else "refuse")

    def roles(self, columns: TableColumns) -> list[tuple[str, str]]:
        """Columns that the rule needs besides those of ``columns.roles()``.

        Raises:
            InputError: if it needs a time column and ``columns`` names none.
        """
        if self.by == "time":
            if columns.time is None:
                raise InputError("a split by time without a time column", "a column of times", "name it in time")
            return [(columns.time, "time")]
        return [] if self.column is None else [(self.column, "split")]


def split_of(file: File, columns: TableColumns, rule: SplitRule, cuts: ArmCuts | None = None) -> NDArray[np.int8]:
    """``[N]`` 0 train, 1 val, 2 test.

    Where ``rule.of_row_alone``, rows get the same split in a whole file and in any batch of it.

    Args:
        cuts: of the whole file, where it is stratified and these are some of its rows; ``None``: these are all.

    Raises:
        InputError: for users, times or labels that are missing, labels other than the splits', and times that are no
            points of the kind of the boundaries.
    """
    if rule.by == "time":
        return _by_time(file, columns, rule)
    if rule.by == "given":
        return _given(file, rule)
    if rule.stratify:
        h, treatment = split_hash(file, columns, rule), treatment_of(file, columns)
        return _stratified(h, treatment, rule) if cuts is None else cuts.split(h, treatment)
    group = _users(file, columns)
    first, second = np.cumsum(rule.shares)[:2]
    if usable():
        from lightning_budget.data.compiled.hashing import split_by_hash

        part = np.empty(len(group), np.int8)
        split_by_hash(group, key_of(rule.seed, "split"), first, second, part)
        return part
    u = hashed_uniform(group, rule.seed, "split")
    return (u >= first).astype(np.int8) + (u >= second)


def split_hash(file: File, columns: TableColumns, rule: SplitRule) -> NDArray[np.uint64]:
    """``[N]`` by which the rule ``user`` splits; of users that differ it differs."""
    return hash_ids(_users(file, columns), rule.seed, "split")


def _users(file: File, columns: TableColumns) -> NDArray[np.int64]:
    return feature_hash(file, columns) if columns.user is None else file[columns.user].users()


def feature_hash(file: File, columns: TableColumns) -> NDArray[np.int64]:
    """Equal for rows with equal features: such rows may be one user."""
    h = np.zeros(len(file[columns.treatment].data), np.uint64)
    parts = []
    for name in columns.dense:
        # Adding 0.0 makes −0.0 and 0.0 one number; all NaN (null) are one, too.
        x = file[name].numbers(finite=name not in columns.nulls) + np.float32(0)
        parts.append(np.where(np.isnan(x), np.float32("nan"), x).view(np.uint32).astype(np.uint64))
    parts += [file[name].labels().hashes() for name in columns.categorical]
    for name in columns.lists:
        entries, offsets = file[name].lists()
        hashes, lengths = entries.labels().hashes(), np.diff(offsets)
        position = np.arange(len(hashes)) - np.repeat(offsets[:-1], lengths)
        mixed = hash_ids((hashes ^ hash_ids(position, 0, "position")).view(np.int64), 0, "entry")
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])
        parts.append(total[offsets[1:]] - total[offsets[:-1]] + lengths.astype(np.uint64))
    for part in parts:
        h = hash_ids((h ^ part).view(np.int64), 0, "features")
    return h.view(np.int64)


def _stratified(h: NDArray[np.uint64], treatment: NDArray[np.int64], rule: SplitRule) -> NDArray[np.int8]:
    """``[N]`` by the ranks of users' hashes among the users of their arms."""
    users, index = np.unique(h, return_inverse=True)
    arm = np.full(len(users), np.iinfo(np.int64).max)
    np.minimum.at(arm, index, treatment)
    order = np.argsort(arm, kind="stable")
    counts = np.bincount(arm)
    start = np.cumsum(counts) - counts
    rank = np.empty(len(users), np.int64)
    rank[order] = np.arange(len(users)) - start[arm[order]]
    part = (rank[:, None] >= first_ranks(counts, np.cumsum(rule.shares)[:2])[arm]).sum(axis=1)
    return part.astype(np.int8)[index]


def _by_time(file: File, columns: TableColumns, rule: SplitRule) -> NDArray[np.int8]:
    column = file[rule.roles(columns)[0][0]]
    times = times_of(column)
    assert rule.boundaries is not None
    points = [times.point(b, column) for b in rule.boundaries]
    return ((times.values >= points[0]).astype(np.int8) + (times.values >= points[1])).astype(np.int8)


def _given(file: File, rule: SplitRule) -> NDArray[np.int8]:
    assert rule.column is not None
    column = file[rule.column]
    labels = column.labels()
    part = labels.take([SPLITS.index(n) if n in SPLITS else -1 for n in labels.names], -1, np.int8)
    if (bad := part < 0).any():
        code = labels.codes[bad.argmax()]
        name = labels.names[code] if code >= 0 else ""
        close = get_close_matches(name, SPLITS, n=1, cutoff=0.5)
        what = f"the unknown split {name!r}" if name else "no split"
        raise column.error(
            f"has {what} ({int(bad.sum())} rows without a split of the three{column.first(bad)})",
            ", ".join(SPLITS),
            f"write {close[0]!r}" if close else "label every row with one of them, or drop those rows",
        )
    return part


def _check_boundaries(boundaries: Sequence[Boundary]) -> None:
    if len(boundaries) != 2:
        raise InputError(
            f"boundaries={list(boundaries)}",
            "two points of time: where val begins, and where test begins",
            "e.g. [2024-03-01, 2024-03-15]",
        )
    first, second = map(boundary_of, boundaries)
    if type(first) is not type(second):
        raise InputError(f"boundaries={list(boundaries)}", "two numbers, or two dates", "give both of one kind")
    if not first < second:  # type: ignore[operator]
        raise InputError(f"boundaries={list(boundaries)} out of order", "the earlier one first", "swap them")
