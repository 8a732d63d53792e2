"""Made-up trials of a given size, drawn batch by batch: for speed and memory, where nothing has to be learnable."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from lightning_budget.batch import KeyedJaggedTensor, RCTBatch
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.statistics import DataStatistics


@dataclass(frozen=True)
class Workload:
    """Tables, network and batches of one benchmark.

    Attributes:
        tables: rows of each embedding table by name; dim: their width.
        history: the table that every user looks up ``history_length`` ids in, instead of one.
        batch_size: rows of a batch.
        dense: number of real-valued features; treatments: K.
        network: layer widths, arguments of the model.
        skew: ids are ``rows · u^skew``, u uniform: 1 spreads them evenly, more makes small ids frequent.
    """

    tables: dict[str, int]
    dim: int
    batch_size: int
    dense: int
    history: str | None = None
    history_length: int = 10
    treatments: int = 5
    network: dict[str, Any] = field(default_factory=dict)
    skew: float = 3.0

    @property
    def schema(self) -> DataSchema:
        return DataSchema(
            treatments=tuple(f"arm{j}" for j in range(self.treatments)),
            dense=tuple(f"x{d}" for d in range(self.dense)),
            sparse=tuple(SparseFeature(name, rows, name == self.history) for name, rows in self.tables.items()),
        )

    @property
    def statistics(self) -> DataStatistics:
        d, k = self.dense, self.treatments
        return DataStatistics((0.0,) * d, (1.0,) * d, (1 / k,) * k, (0.0,) * k, (1.0,) * k, 1.0, 1.0)

    @property
    def model(self) -> dict[str, Any]:
        return {"name": "tarnet", "embedding_dim": self.dim, **self.network}

    def ids(self, name: str, count: int, generator: torch.Generator) -> Tensor:
        rows = self.tables[name]
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        return (rows * u**self.skew).long().clamp_(max=rows - 1)

    def batch(self, seed: int) -> RCTBatch:
        """One batch, a function of ``seed`` alone."""
        g, n = torch.Generator().manual_seed(seed), self.batch_size
        lengths = {name: self.history_length if name == self.history else 1 for name in self.tables}
        sparse = KeyedJaggedTensor.from_lengths_sync(
            list(self.tables),
            torch.cat([self.ids(name, n * length, g) for name, length in lengths.items()]),
            torch.cat([torch.full((n,), length) for length in lengths.values()]),
        )
        return RCTBatch(
            dense=torch.randn(n, self.dense, generator=g),
            sparse=sparse,
            treatment=torch.randint(self.treatments, (n,), generator=g),
            value=torch.randn(n, generator=g),
            cost=torch.rand(n, generator=g),
            propensity=torch.full((n,), 1 / self.treatments),
            row=torch.arange(n),
        )


def digest(batches: Sequence[RCTBatch]) -> str:
    """Fingerprint of all tensors of some batches."""
    h = hashlib.blake2b(digest_size=8)
    for batch in batches:
        for f in fields(batch):
            x = getattr(batch, f.name)
            for tensor in (x.values(), x.lengths()) if f.name == "sparse" else (x,):
                if tensor is not None:
                    h.update(tensor.cpu().numpy().tobytes())
    return h.hexdigest()
