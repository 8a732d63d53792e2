"""Multipliers of many total budgets from one pass: the spend at every price is one curve, which all of them cross."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.allocation.finish import OpenUsers, last_true
from lightning_budget.allocation.frontier import LARGEST, frontier_steps
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.sample import (
    COARSE,
    COARSE_DEVIATIONS,
    DEVIATIONS,
    brackets_from_sample,
    drawn,
    read,
)

FEWEST = 3
"""Budgets within the range of slopes from which on the curve costs less than a bracket for each."""

SLOTS = 1 << 13
"""Most slots between the least and the largest multiplier looked for: sums of them stay in cache."""

NEAR = 256
"""Floats from a slot within which a step is looked at: more than ``OFF`` and what a slope is off once more."""

OFF = 96
"""Floats by which a slope in the precision of the input may be off: its last six bits, and three roundings."""

Bracket = tuple[float, float]

_NARROWEST = 9
"""Width of a slot as a power of two, no less than two of ``NEAR``."""

_SMALLEST, _LARGEST = 1e-30, 1e30
"""Multipliers whose slopes do not leave single precision."""


@dataclass(frozen=True)
class Slots:
    """Ranges of multipliers, equally wide in the bits of a float, from ``edge(0)`` to ``edge(count)``.

    Attributes:
        first: bits of the lowest edge; shift: width of a slot as a power of two; bits: the integer of that precision.
    """

    first: int
    shift: int
    count: int
    bits: np.dtype[Any]

    @classmethod
    def over(cls, low: float, high: float, itemsize: int) -> Slots:
        """At most ``SLOTS`` from one multiplier to another, and one more on each side."""
        bits = np.dtype(np.int32 if itemsize == 4 else np.int64)
        first, last = (int(np.array([x], f"f{itemsize}").view(bits)[0]) for x in (low, high))
        shift = max((last - first).bit_length() - SLOTS.bit_length() + 1, _NARROWEST)
        return cls(first - (1 << shift), shift, ((last - first) >> shift) + 3, bits)

    def edge_bits(self, slot: int) -> int:
        """Bits of the lower end of a slot."""
        return self.first + (slot << self.shift)

    def edge(self, slot: int) -> float:
        """Lower end of a slot."""
        return self._float(self.edge_bits(slot))

    def reach(self, slot: int) -> Bracket:
        """Where a step may lie whose slope falls into a slot."""
        return self._float(self.edge_bits(slot) - OFF), self._float(self.edge_bits(slot + 1) + OFF)

    def _float(self, bits: int) -> float:
        return float(np.array([bits], self.bits).view(f"f{self.bits.itemsize}")[0])

    def above(self, slot: int) -> Slots:
        """Of the slots above one, the lowest."""
        return Slots(self.edge_bits(slot + 1), self.shift, 1, self.bits)

    def of(self, multiplier: float) -> int:
        """The slot of a multiplier, the first or last one if it is beyond them."""
        bits = int(np.array([multiplier], f"f{self.bits.itemsize}").view(self.bits)[0])
        return min(max((bits - self.first) >> self.shift, 0), self.count - 1)


@dataclass(frozen=True)
class SpendCurve:
    """What all users spend at the edges of slots, and who changes arm between them.

    Attributes:
        parts: ``[slots + 1, 2]``, the spend above all slots last; those from slot t on sum exactly to the spend at its
            lower edge, that of users with a step within rounding of the edge excepted.
        listed: of steps in open slots a first user, users from there on, and bits of slopes, piece by piece.
    """

    parts: NDArray[np.float64]
    listed: list[tuple[int, NDArray[np.int32], NDArray[np.signedinteger]]]

    def slots_at(self, totals: list[float], slots: Slots) -> list[int]:
        """In which slot the spend passes each total, about; −1 and the number of slots beyond the ends."""
        upward = self.parts.sum(1)[::-1].cumsum()[-slots.count - 1 :]
        return (slots.count - np.searchsorted(upward, totals, side="right")).tolist()


def brackets_together(value: Tensor, cost: Tensor, targets: list[float]) -> list[Bracket]:
    """As :func:`brackets_from_sample`, for many targets: a curve of the sample within what a few of it say."""
    from lightning_budget.allocation.compiled import run

    v, c, neighbours = drawn(value, cost, 1)
    some = COARSE * neighbours
    coarse = read(v[:, :some], c[:, :some], targets, 0.0, LARGEST, COARSE_DEVIATIONS, neighbours)
    # Slots cannot reach to 0 nor to infinity.
    found = [(low if low > 0 else high / 16, high if high < LARGEST else 16 * low) for low, high, _ in coarse]
    slots = _slots_over(found, value.element_size())
    curve = run.spend_by_slope(v, c, slots, np.empty(0, np.int8)) if slots is not None else None
    if slots is None or curve is None:
        return brackets_from_sample(value, cost, targets)
    margin = [DEVIATIONS * deviation * math.sqrt(neighbours / v.shape[1]) for _, _, deviation in coarse]
    totals = [(t + m) * v.shape[1] for t, m in zip(targets, margin, strict=True)]
    totals += [(t - m) * v.shape[1] for t, m in zip(targets, margin, strict=True)]
    at = curve.slots_at(totals, slots)
    for i, (low, high) in enumerate(found):
        if _in_range(low, high):
            dear, cheap = at[i], at[len(targets) + i]
            low, high = max(low, slots.edge(max(dear, 0))), min(high, slots.edge(min(cheap + 1, slots.count)))
            found[i] = low, max(low, high)
    return found


def _in_range(low: float, high: float) -> bool:
    return _SMALLEST <= low <= high <= _LARGEST


def _slots_over(brackets: list[Bracket], itemsize: int) -> Slots | None:
    fine = [(low, high) for low, high in brackets if _in_range(low, high)]
    if len(fine) < FEWEST:
        return None
    return Slots.over(min(low for low, _ in fine), max(high for _, high in fine), itemsize)


def multipliers_together(users: OpenUsers, totals: list[float], brackets: list[Bracket]) -> list[float | None]:
    """For each total budget its critical multiplier; none where its bracket misses or leaves the range of slopes."""
    from lightning_budget.allocation.compiled import run

    found: list[float | None] = [None] * len(totals)
    slots = _slots_over(brackets, users.value.element_size())
    if slots is None:
        return found
    is_open = np.zeros(slots.count, np.int8)
    for low, high in brackets:
        if _in_range(low, high):
            is_open[slots.of(low) - 1 : slots.of(high) + 2] = 1
    curve = run.spend_by_slope(users.value, users.cost, slots, is_open)
    if curve is None:
        return found
    critical = curve.slots_at([total - math.fsum(users.spend) for total in totals], slots)
    # Steps within rounding of a slot lie in its neighbours.
    wanted = sorted({t for t in critical if 0 < t < slots.count - 1 and is_open[t - 1 : t + 2].all()}, reverse=True)
    left = _users_of(curve, slots, wanted)
    everyone = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *left]))
    value, cost = (x.index_select(1, everyone) for x in (users.value, users.cost))
    slope, price = _steps(value, cost, slots, wanted, [len(rows) for rows in left])
    above = _few_floats(users.spend)
    top, at = len(curve.parts), 0
    for slot, rows in zip(wanted, left, strict=True):
        above = _few_floats(above + curve.parts[slot + 1 : top].ravel().tolist())
        part = slice(at, at + len(rows))
        top, at = slot + 1, part.stop
        taken = run.spend_by_slope(value[:, part], cost[:, part], slots.above(slot), is_open[:0])
        if taken is None:
            continue
        others = _few_floats(above + (-taken.parts).ravel().tolist())
        low, high = slots.reach(slot)
        here = slice(*np.searchsorted(-slope, [-high, -low]))
        candidates = np.concatenate([[high], slope[here]])
        one = _Open(value[:, part], cost[:, part], others, low, high, candidates, price[here])
        for i, total in enumerate(totals):
            if critical[i] == slot:
                found[i] = one.critical(total)
    return found


def _steps(
    value: Tensor, cost: Tensor, slots: Slots, wanted: list[int], users: list[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes, descending, and prices of steps in the slots for whose sake users, so many a slot, were picked."""
    ends = (slots.reach(wanted[-1])[0], slots.reach(wanted[0])[1]) if wanted else (1.0, 1.0)
    _, user, arm, previous, slope = (x.numpy() for x in frontier_steps(value, cost, *ends))
    lower, upper = (np.array([slots.reach(t)[i] for t in wanted]).repeat(users)[user] for i in (0, 1))
    theirs = (slope > lower) & (slope <= upper)
    order = np.flatnonzero(theirs)[np.argsort(-slope[theirs])]
    user, paid = user[order], cost.numpy()
    return slope[order], paid[arm[order], user].astype(np.float64) - paid[previous[order], user]


@dataclass(frozen=True)
class _Open:
    """Few users ``[K, m]`` who may change arm between two multipliers, and floats that sum to the spend of all others.

    Attributes:
        candidates: ``high``, then the slopes of their steps, descending; price: of each step.
    """

    value: Tensor
    cost: Tensor
    others: list[float]
    low: float
    high: float
    candidates: NDArray[np.float64]
    price: NDArray[np.float64]

    def spent(self, multiplier: float) -> float:
        """Spend of all users at a multiplier, rounded once."""
        arm = arms_at(self.value, self.cost, multiplier)
        return math.fsum(self.others + self.cost.gather(0, arm[None])[0].tolist())

    def critical(self, total: float) -> float | None:
        """The least candidate at which the spend fits; none where it lies outside."""
        at_high = self.spent(self.high)
        if at_high > total:
            return None
        # At a slope, its own step is not taken yet.
        running = at_high + np.concatenate([[0.0], self.price]).cumsum()
        guess = int(np.searchsorted(running, total, side="right"))
        size = len(self.candidates)
        i = last_true(lambda i: self.spent(float(self.candidates[i])) <= total, guess, size)
        return None if i == size - 1 and self.spent(self.low) <= total else float(self.candidates[i])


def _users_of(curve: SpendCurve, slots: Slots, wanted: list[int]) -> list[NDArray[np.int64]]:
    """Users, ascending, with a step in each wanted slot or within rounding of it."""
    from lightning_budget.allocation.compiled.interval_sums import within

    near = np.zeros(slots.count, bool)
    for slot in wanted:
        near[slot - 1 : slot + 2] = True
    pieces = [(np.empty(0, np.int64), np.empty(0, slots.bits))]
    few = np.empty(max((len(ends) for _, _, ends in curve.listed), default=0) + 1, np.int64)
    for start, rows, ends in curve.listed:
        some = few[: within(ends, slots.first, slots.shift, near, few)]
        pieces.append((rows[some].astype(np.int64) + start, ends[some]))
    rows, ends = (np.concatenate(x) for x in zip(*pieces, strict=True))
    return [
        np.unique(rows[(ends >= slots.edge_bits(t) - NEAR) & (ends < slots.edge_bits(t + 1) + NEAR)]) for t in wanted
    ]


def _few_floats(x: list[float]) -> list[float]:
    """Two floats that sum to what many do."""
    total = math.fsum(x)
    return [total, math.fsum([*x, -total])]
