"""Users that are spread over processes: what each of these holds, and how they agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lightning_budget.allocation.search import Bracket
from lightning_budget.allocation.summation import exact_parts

T = TypeVar("T")


class Team(Protocol):
    """Processes that share the users."""

    def gather(self, mine: T) -> list[T]:
        """What every process brings, in the order of their ranks, to all of them."""
        ...

    def total(self, mine: Tensor) -> Tensor:
        """The sum over processes of float64 tensors of one shape."""
        ...


@dataclass(frozen=True)
class Block:
    """Some open users: value, cost ``[K, n]``, key and place ``[n]`` int64.

    ``key`` breaks ties; ``place`` is the caller's name for where the user stands, and grows with the rows of the input.
    """

    value: Tensor
    cost: Tensor
    key: Tensor
    place: Tensor

    def select(self, rows: Tensor) -> Block:
        """The users ``rows``, or those that a ``[n]`` bool marks."""
        return Block(self.value[:, rows], self.cost[:, rows], self.key[rows], self.place[rows])


@dataclass(frozen=True)
class OpenShare:
    """What a bracket leaves open of the users of one process.

    Attributes:
        blocks: gives the open users, again at each call.
        users: how many they are.
        spend, worth: floats that sum exactly to what this process's other users cost and are worth.
    """

    bracket: Bracket
    blocks: Callable[[], Iterable[Block]]
    users: int
    spend: list[float]
    worth: list[float]


def picked_from(blocks: Callable[[], Iterable[Block]], marks: list[Tensor]) -> Callable[[], Iterator[Block]]:
    """Blocks of the users that are marked, a ``[n]`` bool for each block, read again at each call."""
    if isinstance(blocks, _Picked):
        return _Picked(blocks.origin, [_marked(a, b) for a, b in zip(blocks.marks, marks, strict=True)])
    return _Picked(blocks, marks)


class _Picked:
    def __init__(self, origin: Callable[[], Iterable[Block]], marks: list[Tensor]) -> None:
        self.origin, self.marks = origin, marks

    def __call__(self) -> Iterator[Block]:
        for block, marked in zip(self.origin(), self.marks, strict=True):
            yield block.select(marked)


def _marked(outer: Tensor, inner: Tensor) -> Tensor:
    """Of all, those that are marked among the marked."""
    found = torch.zeros_like(outer)
    found[outer] = inner
    return found


def totals(share: OpenShare, arms: Callable[[Block], Tensor], team: Team) -> tuple[list[float], list[float]]:
    """A few floats that sum to the spend, and to the worth, of all users of all processes, to about 2⁻¹⁰⁵.

    Args:
        arms: gives ``[n]`` int64, the arms of the open users of a block.
    """
    spend, worth = list(share.spend), list(share.worth)
    for block in share.blocks():
        chosen = arms(block)[None]
        spend += exact_parts(block.cost.gather(0, chosen))
        worth += exact_parts(block.value.gather(0, chosen))
    everyone = team.gather((_condensed(spend), _condensed(worth)))
    return [x for mine, _ in everyone for x in mine], [x for _, mine in everyone for x in mine]


def _condensed(parts: list[float]) -> list[float]:
    """Three floats whose exact sum is that of many."""
    found: list[float] = []
    for _ in range(3):
        found.append(math.fsum([*parts, *(-x for x in found)]))
    return found
