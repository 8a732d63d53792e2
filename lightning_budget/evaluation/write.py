"""An evaluation on disk: numbers for programs, pictures for people."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_budget.evaluation.curves_file import write_curves
from lightning_budget.evaluation.figure import calibration_figure, ranking_figure
from lightning_budget.evaluation.results import Evaluation
from lightning_budget.report.figure import comparison_figure
from lightning_budget.report.write import save_figure, write_json


def write_evaluation(evaluation: Evaluation, folder: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.json``, ``curves.parquet``, and ``curves``, ``rankings`` and ``calibration`` as pictures.

    Pictures are ``.png`` and ``.svg``.

    Each is whole or not there; the numbers go first, so that a failure in drawing does not lose them.

    Args:
        evaluation: of :func:`~lightning_budget.evaluation.evaluate`.
        folder: made if missing.

    Returns:
        The pictures.

    Raises:
        InputError: if the curves cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(evaluation.to_dict(), folder / "report.json")
    write_curves(evaluation.curves, folder / "curves.parquet")
    pictures = save_figure(comparison_figure(evaluation.report, evaluation.bands), folder / "curves")
    pictures += save_figure(ranking_figure(evaluation), folder / "rankings")
    return pictures + save_figure(calibration_figure(evaluation), folder / "calibration")
