"""Columns of equal length that are cut together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Self

CHUNK = 1 << 14
"""Rows computed at once: their intermediate results stay in the processor's cache, and small."""


def chunks(n: int) -> Iterator[slice]:
    """Slices of up to ``CHUNK`` rows that cover ``n``."""
    return (slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


class Rows:
    """A dataclass of arrays with one entry a row."""

    def rows(self, part: slice) -> Self:
        """Those rows of every column."""
        return type(self)(*(getattr(self, f.name)[part] for f in fields(self)))  # type: ignore[arg-type]
