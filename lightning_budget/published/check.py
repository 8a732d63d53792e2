"""One comparison of a file with what was published."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: of what.
        passed: ``None`` where nothing can be said.
        found: in the file.
        expected: as published, and how near it must be.
    """

    name: str
    passed: bool | None
    found: str
    expected: str
