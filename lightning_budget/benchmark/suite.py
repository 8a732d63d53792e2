"""What a run of the benchmark consists of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Budgets, as fractions of the free spend."""


@dataclass(frozen=True)
class DataSet:
    """One data set of the catalogue.

    Attributes:
        name: its name in the catalogue.
        overrides: of the training's config.
        about: what it is, in a line.
        file: its rows, a path in the data root; ``None`` where they are generated.
        prepare: name of a published data set, as which the file is checked and converted first.
        generate: arguments of :func:`lightning_budget.benchmark.files.generated`.
        seeds: its own, in place of the suite's; ``None`` where it has none.
    """

    name: str
    overrides: tuple[str, ...]
    about: str = ""
    file: str | None = None
    prepare: str | None = None
    generate: Mapping[str, Any] | None = None
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one seed."""

    dataset: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.dataset} · {self.method} · seed {self.seed}"


@dataclass(frozen=True)
class Suite:
    """Everything a worker must know.

    Attributes:
        folder: of what is finished.
        data_root: where files of data sets are looked for.
        datasets: by name, in the order of the table.
        methods: of ``configs/method``, in the order of the table.
        seeds: each another trial of the data set: another population, or another split of a file; of data sets that
            have none of their own.
        trials: of every cell.
        overrides: of every training.
        search: space that all methods share.
        resamples: of the bootstrap.
        fractions: budgets.
    """

    folder: Path
    data_root: Path
    datasets: Mapping[str, DataSet]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: int
    overrides: tuple[str, ...] = ()
    search: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resamples: int = 200
    fractions: tuple[float, ...] = FRACTIONS

    def seeds_of(self, dataset: str) -> tuple[int, ...]:
        """Its own, else those of the suite."""
        own = self.datasets[dataset].seeds
        return self.seeds if own is None else own

    def cells(self) -> Iterator[Cell]:
        """All of them; cells with the same rows follow each other."""
        for dataset in self.datasets:
            for seed in self.seeds_of(dataset):
                for method in self.methods:
                    yield Cell(dataset, method, seed)
