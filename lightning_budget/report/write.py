"""A report on disk: numbers for programs, pictures for people."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lightning_budget.atomic import atomic_path
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
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_path(folder / "report.json") as path:
        path.write_text(text + "\n", encoding="utf-8")
    figure = comparison_figure(report)
    pictures = [folder / "curves.png", folder / "curves.svg"]
    for picture in pictures:
        with atomic_path(picture) as path:
            # Without a date the same report gives the same picture.
            figure.savefig(path, format=picture.suffix[1:], metadata={"Date": None} if picture.suffix == ".svg" else {})
    return pictures
