"""How far a long computation has come, told to whoever wants to know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Tracker(Protocol):
    """Passes a sequence on and tells how far it has come, as ``rich.progress.track`` does."""

    def __call__(self, sequence: Sequence[T], description: str) -> Iterable[T]:
        """The items of ``sequence``."""
        ...


def untracked(sequence: Sequence[T], description: str) -> Iterable[T]:
    """Tell nobody."""
    return sequence
