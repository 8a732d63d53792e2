"""Bytes that ranks exchange in one training step.

Left out are the sizes of the messages, 24 bytes a rank and exchange of ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_budget.training.capacity.description import Table

ID_BYTES = 8
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Flow:
    """Bytes of one exchange, by rank: ``[R]`` each. What a rank keeps to itself does not count."""

    sent: tuple[float, ...]
    received: tuple[float, ...]

    @property
    def busiest(self) -> float:
        """The most that any rank sends or receives: links carry both directions at once."""
        return max(*self.sent, *self.received)

    def __add__(self, other: Flow) -> Flow:
        return Flow(
            tuple(a + b for a, b in zip(self.sent, other.sent, strict=True)),
            tuple(a + b for a, b in zip(self.received, other.received, strict=True)),
        )


@dataclass(frozen=True)
class Traffic:
    """One step: ids to the rows, pooled embeddings to the data, gradients back, and the dense gradients.

    ``host``: between device and host memory, ``[R]``, each way, if no row is found in the device's cache.
    """

    ids: Flow
    forward: Flow
    backward: Flow
    dense: Flow
    host: tuple[float, ...]

    @property
    def flows(self) -> dict[str, Flow]:
        """By name, in the order of a step."""
        return {
            "ids (all-to-all)": self.ids,
            "pooled embeddings (forward)": self.forward,
            "their gradients (backward)": self.backward,
            "dense gradients (all-reduce)": self.dense,
        }


def table_traffic(table: Table, rows: Sequence[int], local_batch: int) -> tuple[Flow, Flow, Flow]:
    r"""What one table exchanges in a step: ids, pooled embeddings, gradients.

    With R ranks, b rows of data on each, L ids in a bag, D columns, and the share s_q of the table's rows on rank q
    (ids fall evenly over rows, as hashed ids do; ids sorted by popularity load the first shards more):

    - **ids**: rank p sends b·L·s_q ids of 8 bytes to each q ≠ p, and the b lengths of its bags, 8 bytes each. A
      row-wise table sends lengths to every rank, empty bags included.
    - **pooled embeddings**: a rank with rows holds a sum for each of the R·b bags. Table-wise its owner sends b·D
      numbers of 4 bytes to each of the others (all-to-all). Row-wise the sums over all ranks are taken on the way
      (reduce-scatter): every rank sends and receives (R − 1)·b·D numbers.
    - **gradients**: the same, backwards (all-to-all, all-gather).

    Args:
        table: what is looked up.
        rows: ``[R]``, rows of it on each rank; all on one is table-wise.
        local_batch: b.
    """
    r = len(rows)
    owners = [q for q in range(r) if rows[q]]
    row_wise = len(owners) > 1
    # A row-wise table takes part in its collectives on every rank, also on those without rows.
    there = range(r) if row_wise else owners
    share = [n / table.rows for n in rows]
    bags, ids = ID_BYTES * local_batch, ID_BYTES * local_batch * table.ids
    sent = tuple(ids * (1 - share[p]) + bags * (len(there) - (p in there)) for p in range(r))
    received = tuple((r - 1) * (ids * share[q] + bags * (q in there)) for q in range(r))
    pooled = float(FLOAT_BYTES * local_batch * table.dim)
    out = tuple((r - 1) * pooled * (p in there) for p in range(r))
    back = out if row_wise else tuple(pooled * (p not in there) for p in range(r))
    return Flow(sent, received), Flow(out, back), Flow(back, out)


def all_reduce(parameters: int, ranks: int) -> Flow:
    """Averaging P fp32 gradients over R ranks: 2·(R − 1)/R·4·P bytes each way, the least there can be (a ring's)."""
    each = (2 * (ranks - 1) / ranks * FLOAT_BYTES * parameters,) * ranks
    return Flow(each, each)


def host_traffic(table: Table, rows: Sequence[int], batch_size: int, row_bytes: int) -> tuple[float, ...]:
    """Rows of a host table that a step moves to each device and back, ``[R]`` bytes each way, if none is cached.

    Every id of the global batch moves one row: repeated ids and a warm cache only lower it.
    """
    return tuple(batch_size * table.ids * n / table.rows * row_bytes for n in rows)
