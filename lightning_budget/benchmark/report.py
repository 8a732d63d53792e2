"""Everything that the finished cells say, on disk."""

from __future__ import annotations

from pathlib import Path

from lightning_budget.atomic import atomic_path
from lightning_budget.benchmark.figure import differences_figure
from lightning_budget.benchmark.markdown import document
from lightning_budget.benchmark.results import Results
from lightning_budget.benchmark.suite import Suite
from lightning_budget.benchmark.verdict import findings, last_line
from lightning_budget.report.write import save_figure


def write_results(suite: Suite, output: Path) -> tuple[str, list[Path]]:
    """Write ``<folder>/results.parquet``, and ``<output>.md``, ``.png`` and ``.svg``; each is whole or not there.

    Returns:
        The verdict in a line, and the files.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    results = Results.read(suite)
    parquet, table = suite.folder / "results.parquet", output.with_name(f"{output.name}.md")
    results.write(parquet)
    found = findings(results)
    with atomic_path(table) as temporary:
        temporary.write_text(document(results, found, f"{output.name}.png"), encoding="utf-8")
    pictures = save_figure(differences_figure(results), output)
    return last_line(found), [parquet, table, *pictures]
