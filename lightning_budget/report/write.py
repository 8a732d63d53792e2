"""A report on disk: numbers for programs, pictures for people."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lightning_budget.atomic import atomic_path
from lightning_budget.plots import Figure
from lightning_budget.report.figure import comparison_figure
from lightning_budget.report.results import Report


def write_report(report: Report, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.json``, ``curves.png`` and ``curves.svg``; each is whole or not there.

    The numbers go first: a failure in drawing does not lose them.

    Args:
        report: of :func:`~lightning_budget.report.compare`.
        folder: made if missing.

    Returns:
        The pictures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(report.to_dict(), folder / "report.json")
    return save_figure(comparison_figure(report), folder / "curves")


def write_json(numbers: dict[str, Any], path: Path) -> None:
    """Write plain JSON, whole or not at all."""
    text = json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def save_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write ``<stem>.png`` and ``<stem>.svg``, each whole or not at all."""
    pictures = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for picture in pictures:
        with atomic_path(picture) as path:
            # Without a date the same report gives the same picture.
            figure.savefig(path, format=picture.suffix[1:], metadata={"Date": None} if picture.suffix == ".svg" else {})
    return pictures
