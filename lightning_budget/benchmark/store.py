"""What is finished, on disk: each file is whole or not there.

::

    <folder>/trials/<data set>/<method>/<seed>/<trial>.json   what a trial says on validation
                                              <trial>/        its checkpoint, until the cell is done
             cells/<data set>/<method>/<seed>.json            the cell: its selected trial, judged on test
                                      <seed>.npz              its predictions of the test split
             rows/<data set>/<seed>.npz                       outcomes of the test split
             failed/<data set>/<method>/<seed>.txt            why a cell failed last
             skipped/<data set>/<method>/<seed>.txt           why there is nothing to train for it
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_budget.atomic import atomic_path
from lightning_budget.batch import ResponsePrediction
from lightning_budget.benchmark.suite import Cell
from lightning_budget.report.write import write_json
from lightning_budget.table import RCTTable

COLUMNS = ("user", "treatment", "value", "cost", "propensity", "weight", "true_value", "true_cost")
"""Of the test split, as :class:`RCTTable` names them."""

STATES = ("failed", "skipped")
"""Of cells that were tried and are not done."""


@dataclass(frozen=True)
class Store:
    """A folder of results."""

    folder: Path

    def trial_folder(self, cell: Cell, trial: int) -> Path:
        """Where a trial trains."""
        return self.folder / "trials" / cell.dataset / cell.method / str(cell.seed) / str(trial)

    def trial_file(self, cell: Cell, trial: int) -> Path:
        """Whose presence says that the trial is finished."""
        return self.trial_folder(cell, trial).with_suffix(".json")

    def cell_file(self, cell: Cell) -> Path:
        """Whose presence says that the cell is finished."""
        return self.folder / "cells" / cell.dataset / cell.method / f"{cell.seed}.json"

    def rows_file(self, dataset: str, seed: int) -> Path:
        """Outcomes of the test split."""
        return self.folder / "rows" / dataset / f"{seed}.npz"

    def note_file(self, cell: Cell, state: str) -> Path:
        """Why it is in that state, one of :data:`STATES`."""
        return self.folder / state / cell.dataset / cell.method / f"{cell.seed}.txt"

    def note(self, cell: Cell) -> tuple[str, str] | None:
        """State and reason of a cell that was tried and is not done."""
        for state in STATES:
            if (path := self.note_file(cell, state)).exists():
                return state, path.read_text(encoding="utf-8")
        return None

    def read(self, path: Path) -> dict[str, Any] | None:
        """A JSON file; ``None`` where it is not there."""
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write(self, path: Path, numbers: dict[str, Any]) -> None:
        """A JSON file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(numbers, path)

    def write_predictions(self, cell: Cell, prediction: ResponsePrediction) -> None:
        """Of the test split, as float32."""
        arrays = {name: getattr(prediction, name).float().numpy() for name in ("value", "cost")}
        _write_arrays(self.cell_file(cell).with_suffix(".npz"), arrays)

    def predictions(self, cell: Cell) -> ResponsePrediction:
        """What :meth:`write_predictions` wrote."""
        with np.load(self.cell_file(cell).with_suffix(".npz")) as arrays:
            return ResponsePrediction(torch.from_numpy(arrays["value"]), torch.from_numpy(arrays["cost"]))

    def write_rows(self, dataset: str, seed: int, table: RCTTable) -> None:
        """Outcomes of the test split, with which its predictions can be judged again."""
        columns = {name: x.numpy() for name in COLUMNS if (x := getattr(table, name)) is not None}
        _write_arrays(self.rows_file(dataset, seed), columns)

    def rows(self, dataset: str, seed: int) -> RCTTable:
        """What :meth:`write_rows` wrote, without features."""
        with np.load(self.rows_file(dataset, seed)) as arrays:
            columns: dict[str, Tensor] = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return RCTTable(dense=torch.empty(len(columns["treatment"]), 0), ids={}, **columns)

    def tell(self, cell: Cell, state: str | None, why: str = "") -> None:
        """Record that a cell is in one of :data:`STATES`, or in none of them any more."""
        for other in STATES:
            self.note_file(cell, other).unlink(missing_ok=True)
        if state is None:
            return
        path = self.note_file(cell, state)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(why, encoding="utf-8")

    def drop_checkpoints(self, cell: Cell, kept: int, trials: int) -> None:
        """Of all trials but ``kept``."""
        for trial in range(trials):
            if trial != kept:
                shutil.rmtree(self.trial_folder(cell, trial), ignore_errors=True)

    @contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Whether the cell is ours; ``False`` while another process is at it."""
        path = self.folder / "locks" / f"{cell.dataset}-{cell.method}-{cell.seed}"
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True
        finally:
            os.close(descriptor)


def _write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
