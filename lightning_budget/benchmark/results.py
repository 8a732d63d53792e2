"""All finished cells of a folder, as one table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from lightning_budget.atomic import atomic_path
from lightning_budget.benchmark.judge import OWN
from lightning_budget.benchmark.store import Store
from lightning_budget.benchmark.suite import Cell, Suite
from lightning_budget.report.results import ORACLE

SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("method", pa.string()),
        ("kind", pa.string()),
        ("seed", pa.int64()),
        ("state", pa.string()),
        ("fraction", pa.float64()),
        ("budget", pa.float64()),
        ("true_value", pa.float64()),
        ("regret", pa.float64()),
        ("eom_hajek", pa.float64()),
        ("eom_low", pa.float64()),
        ("eom_high", pa.float64()),
        ("validation", pa.float64()),
        ("trial", pa.int64()),
        ("trials", pa.int64()),
        ("epochs", pa.int64()),
        ("seconds", pa.float64()),
        ("cpu_seconds", pa.float64()),
        ("seconds_of_all", pa.float64()),
        ("parameters", pa.int64()),
        ("aucc", pa.float64()),
        ("train_rows", pa.int64()),
        ("test_rows", pa.int64()),
    ]
)
"""Of ``results.parquet``: a row per budget of a cell that is done, one per cell that is not."""


@dataclass(frozen=True)
class Results:
    """What is there of the cells that a suite asks for.

    Attributes:
        suite: what was asked for.
        found: the cells that are done.
    """

    suite: Suite
    found: Mapping[Cell, Mapping[str, Any]]

    @classmethod
    def read(cls, suite: Suite) -> Results:
        """All of them that lie in the suite's folder."""
        store = Store(suite.folder)
        read = {cell: store.read(store.cell_file(cell)) for cell in suite.cells()}
        return cls(suite, {cell: numbers for cell, numbers in read.items() if numbers is not None})

    @cached_property
    def pairs(self) -> dict[tuple[str, str, str], Any]:
        """Differences that are made already."""
        return {}

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Method to kind."""
        return {cell.method: numbers["kind"] for cell, numbers in self.found.items()}

    def why_missing(self, dataset: str, method: str) -> str:
        """Of a method without a finished cell on the data set."""
        notes = [Store(self.suite.folder).note(Cell(dataset, method, s)) for s in self.suite.seeds_of(dataset)]
        known = [n for n in notes if n is not None]
        if not known:
            return "missing"
        state, why = known[0]
        return f"{state}: {why.strip().splitlines()[-1]}"

    def seeds(self, dataset: str, method: str) -> list[int]:
        """Those with a finished cell."""
        return [s for s in self.suite.seeds_of(dataset) if Cell(dataset, method, s) in self.found]

    def methods(self, dataset: str) -> list[str]:
        """Those with a finished cell on the data set."""
        return [m for m in self.suite.methods if self.seeds(dataset, m)]

    def datasets(self) -> list[str]:
        """Those with a finished cell."""
        return [d for d in self.suite.datasets if self.methods(d)]

    def any_cell(self, dataset: str) -> Mapping[str, Any]:
        """For what all cells of a data set share."""
        return next(numbers for cell, numbers in self.found.items() if cell.dataset == dataset)

    def has_oracle(self, dataset: str) -> bool:
        return bool(self.any_cell(dataset)["has_oracle"])

    def values(self, dataset: str, method: str, seed: int, policy: str = OWN) -> list[float]:
        """Value at each budget: true where it is known, else EOM (Hájek)."""
        policies = self.found[Cell(dataset, method, seed)]["policies"]
        return policies[policy]["true" if "true" in policies[policy] else "eom_hajek"]

    def reference(self, dataset: str, seed: int, policy: str) -> list[float]:
        """Value of control, uniform or the oracle at each budget, which every cell of the same rows has."""
        method = next(m for m in self.suite.methods if Cell(dataset, m, seed) in self.found)
        return self.values(dataset, method, seed, policy)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Of ``results.parquet``; what is not known is left out."""
        for cell in self.suite.cells():
            common: dict[str, Any] = {"dataset": cell.dataset, "method": cell.method, "seed": cell.seed}
            numbers = self.found.get(cell)
            if numbers is None:
                note = Store(self.suite.folder).note(cell)
                yield common | {"state": "missing" if note is None else note[0]}
                continue
            common |= {key: numbers[key] for key in SCHEMA.names if key in numbers and key not in common}
            common |= {"state": "done", "trials": len(numbers["settings"])}
            own, oracle = numbers["policies"][OWN], numbers["policies"].get(ORACLE)
            for b, fraction in enumerate(numbers["fractions"]):
                row = common | {"fraction": fraction, "budget": numbers["budgets"][b], "eom_hajek": own["eom_hajek"][b]}
                row |= {"eom_low": own["low"][b], "eom_high": own["high"][b]}
                if oracle is not None:
                    row |= {"true_value": own["true"][b], "regret": oracle["true"][b] - own["true"][b]}
                yield row

    def write(self, path: Path) -> None:
        """``results.parquet``."""
        columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
        for row in self.rows():
            for name, column in columns.items():
                column.append(row.get(name))
        with atomic_path(path) as temporary:
            pyarrow.parquet.write_table(pa.table(columns, schema=SCHEMA), temporary)


def mean(x: Sequence[float]) -> float:
    """Of at least one number."""
    return sum(x) / len(x)
