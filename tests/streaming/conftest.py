"""A few thousand users, cut as if they were many."""

from __future__ import annotations

from pathlib import Path

import pytest
from streams import Small, small


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 700 rows, batches of 257, and a bracket although all users would fit."""
    small(monkeypatch.setattr)


@pytest.fixture
def users() -> Small:
    return Small.draw(6000, 4)


@pytest.fixture
def folder(users: Small, tmp_path: Path) -> Path:
    """Five partitions."""
    return users.write(tmp_path / "in", 5)
