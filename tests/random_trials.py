"""Small random trials with every kind of column."""

from __future__ import annotations

import torch

from lightning_budget.batch import RCTBatch
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import IdList, RCTTable

USERS, CATEGORIES = 50, 20


def random_table(
    rows: int, treatments: int = 3, seed: int = 0, oracle: bool = False, lists: bool = True, weights: bool = False
) -> RCTTable:
    """Rows of a trial with three dense features, an id feature and lists of ids, some of which are empty."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 4, (rows,), generator=g) * lists
    return RCTTable(
        user=torch.randint(0, USERS, (rows,), generator=g),
        dense=5 + 2 * torch.randn(rows, 3, generator=g),
        ids={
            "user_id": torch.randint(0, USERS, (rows,), generator=g),
            "viewed": IdList(
                torch.randint(0, CATEGORIES, (int(lengths.sum()),), generator=g),
                torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
            ),
        },
        treatment=torch.randint(0, treatments, (rows,), generator=g),
        value=4 * torch.rand(rows, generator=g),
        cost=torch.rand(rows, generator=g),
        propensity=0.2 + 0.6 * torch.rand(rows, generator=g),
        true_value=torch.rand(rows, treatments, generator=g) if oracle else None,
        true_cost=torch.rand(rows, treatments, generator=g) if oracle else None,
        weight=2 * torch.rand(rows, generator=g) if weights else None,
    )


def random_batch(rows: int, treatments: int = 3, seed: int = 0) -> RCTBatch:
    """All rows of a random table."""
    return random_table(rows, treatments, seed).batch(torch.arange(rows))


def random_schema(treatments: int = 3, **changes: object) -> DataSchema:
    """What the columns of a random table mean."""
    columns = {
        "dense": ("recency", "basket", "tenure"),
        "sparse": (SparseFeature("user_id", USERS), SparseFeature("viewed", CATEGORIES, is_list=True)),
    }
    return DataSchema(tuple(f"arm_{j}" for j in range(treatments)), **{**columns, **changes})  # type: ignore[arg-type]


def random_statistics(treatments: int = 3) -> DataStatistics:
    """Moments of a random table, with a different mean for every arm."""
    return DataStatistics(
        dense_mean=(5.0, 5.0, 5.0),
        dense_std=(2.0, 2.0, 2.0),
        arm_share=(1 / treatments,) * treatments,
        value_mean=tuple(0.1 + 0.1 * j for j in range(treatments)),
        cost_mean=tuple(0.05 + 0.06 * j for j in range(treatments)),
        value_scale=2.0,
        cost_scale=0.5,
    )


def id_lists(batch: RCTBatch) -> dict[str, list[list[int]]]:
    """Each user's ids, feature by feature, read off the layout that :class:`RCTBatch` draws."""
    assert batch.sparse is not None
    values, lengths = batch.sparse.values().tolist(), batch.sparse.lengths().tolist()
    out: dict[str, list[list[int]]] = {}
    for f, key in enumerate(batch.sparse.keys()):
        out[key] = []
        for n in lengths[f * len(batch) : (f + 1) * len(batch)]:
            out[key].append(values[:n])
            values = values[n:]
    assert values == []
    return out
