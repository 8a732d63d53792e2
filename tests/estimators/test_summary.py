"""The page for people names every estimator as it is."""

from __future__ import annotations

from pathlib import Path

from lightning_budget.estimators import ESTIMATORS
from lightning_budget.estimators.summary import markdown_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "goal.md"


def test_the_page_holds_the_table_as_the_registry_gives_it() -> None:
    table = markdown_table()
    assert all(f"| `{name}` |" in table for name in ESTIMATORS)
    assert table in PAGE.read_text(), "put markdown_table() into docs/goal.md"
