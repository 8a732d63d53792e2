"""How many ids share a table row: counted, expected, and estimated of a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_budget.data.files import File
from lightning_budget.data.id_hash import Identities, encode, identities
from lightning_budget.hashing import hash_ids
from lightning_budget.schema import Ids, SparseFeature

COUNTED_ENTRIES = 10_000_000
"""Entries of a column up to which its distinct ids are counted and not estimated."""


@dataclass(frozen=True)
class Collisions:
    """Ids of one feature that share the row of another.

    Attributes:
        feature: its name; rows: of the table, for known ids.
        distinct: n, different ids, counted or estimated.
        expected: share of them that an ideal hash lets share a row, :func:`expected_sharing`.
        counted: the share that does; ``None`` where the ids were not counted.
        ids: hashed, or managed. Managed ids share no row but that of the unknown, and both shares are those that find
            no other free, ``max(0, 1 − rows / n)``.
    """

    feature: str
    rows: int
    distinct: float
    expected: float
    counted: float | None
    ids: Ids = "hashed"

    @property
    def share(self) -> float:
        """Counted where that was done, else expected."""
        return self.expected if self.counted is None else self.counted

    def __str__(self) -> str:
        about = "about " if self.counted is None else ""
        ids = f"{about}{self.distinct:,.0f} {self.feature} for {self.rows:,} rows"
        if self.ids == "managed":
            return f"{ids}: {self.share:.2%} find none free"
        expected = "" if self.counted is None else f" ({self.expected:.2%} expected)"
        return f"{ids}: {self.share:.2%} share theirs{expected}"


def told(collisions: Sequence[Collisions]) -> str | None:
    """One line about features in which ids share a row, or 1 in 20,000 and more may; ``None`` if there are none."""
    shared = [str(c) for c in collisions if (c.expected >= 5e-5 if c.counted is None else c.counted > 0)]
    return f"Ids in tables: {'; '.join(shared)}." if shared else None


def expected_sharing(distinct: float, rows: int) -> float:
    """Probability that an id shares its row with another: ``1 − (1 − 1/rows)^(distinct − 1)``."""
    return -math.expm1(max(distinct - 1, 0) * math.log1p(-1 / rows)) if rows > 1 else float(distinct > 1)


def without_row(distinct: float, rows: int) -> float:
    """Share of ids that find no row free, where each takes one."""
    return max(0.0, 1 - rows / max(distinct, 1))


def collisions_in(file: File, features: Sequence[SparseFeature], rows: NDArray[np.bool_]) -> tuple[Collisions, ...]:
    """Of every hashed and managed feature, among the labels in ``rows`` (``[N]``)."""
    found = []
    for feature in features:
        if feature.ids == "listed":
            continue
        column, of_entry = file[feature.name], rows
        if feature.is_list:
            column, offsets = column.lists()
            of_entry = np.repeat(rows, np.diff(offsets))
        ids = identities(column)
        found.append(collisions_of(Identities(ids.values[of_entry], ids.present[of_entry]), feature))
    return tuple(found)


def collisions_of(ids: Identities, feature: SparseFeature) -> Collisions:
    """Of the labels among ``ids``; beyond :data:`COUNTED_ENTRIES` estimated by a :class:`DistinctSketch`."""
    labels = ids.values[ids.present]
    if len(labels) > COUNTED_ENTRIES:
        sketch = DistinctSketch()
        sketch.update(ids)
        return sketch.collisions(feature)
    distinct = np.unique(labels)
    n, rows = len(distinct), feature.num_embeddings - 1
    if feature.ids == "managed":
        left = without_row(n, rows)
        return Collisions(feature.name, rows, n, left, left, "managed")
    taken = encode(Identities(distinct, np.ones(n, bool)), feature)
    _, inverse, count = np.unique(taken, return_inverse=True, return_counts=True)
    return Collisions(feature.name, rows, n, expected_sharing(n, rows), float((count[inverse] > 1).sum() / max(n, 1)))


class DistinctSketch:
    """Number of different labels of a stream in bounded memory: the k smallest of their hashes.

    With v the k-th smallest hash as a fraction of 2⁶⁴, there were about ``(k − 1) / v`` labels, with a relative
    standard error of ``1 / √(k − 2)``: 1.6 % at the default. Fewer than k labels are counted exactly. What was seen
    twice, in any order and on any process, counts once, so sketches merge.

    Args:
        size: k ≥ 3; memory is 16·k bytes.

    Source: Bar-Yossef et al. 2002, doi:10.1007/3-540-45726-7_1; Beyer et al. 2007, doi:10.1145/1247480.1247504.
    """

    def __init__(self, size: int = 4096) -> None:
        self.size = size
        self.smallest = np.zeros(0, np.uint64)

    def update(self, ids: Identities) -> None:
        """Take in more entries."""
        hashes = hash_ids(ids.values[ids.present], 0, "distinct")  # type: ignore[arg-type]
        if len(self.smallest) == self.size:
            hashes = hashes[hashes < self.smallest[-1]]
        self._keep(hashes)

    def merge(self, other: DistinctSketch) -> None:
        """Take in what another sketch of the same size has seen."""
        self._keep(other.smallest)

    def _keep(self, hashes: NDArray[np.uint64]) -> None:
        if len(hashes):
            self.smallest = np.unique(np.concatenate([self.smallest, np.unique(hashes)[: self.size]]))[: self.size]

    @property
    def distinct(self) -> float:
        """Different labels seen: exact below ``size``, an unbiased estimate from there on."""
        if len(self.smallest) < self.size:
            return float(len(self.smallest))
        return (self.size - 1) / ((float(self.smallest[-1]) + 1) / 2.0**64)

    def collisions(self, feature: SparseFeature) -> Collisions:
        """Of the labels seen, expected."""
        n, rows = self.distinct, feature.num_embeddings - 1
        share = without_row(n, rows) if feature.ids == "managed" else expected_sharing(n, rows)
        return Collisions(feature.name, rows, n, share, None, feature.ids)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers only."""
        return {"size": self.size, "smallest": self.smallest.view(np.int64).tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> DistinctSketch:
        """Inverse of :meth:`state_dict`."""
        sketch = cls(state["size"])
        sketch.smallest = np.array(state["smallest"], np.int64).view(np.uint64)
        return sketch
