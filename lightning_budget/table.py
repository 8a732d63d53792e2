"""A randomized trial held as columns in memory, and the collate function that cuts batches from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_budget.batch import RCTBatch


@dataclass(frozen=True)
class IdList:
    """Variable-length ids: user ``i`` has ``values[offsets[i]:offsets[i + 1]]``.

    Attributes:
        values: ``[total]`` int64 table rows.
        offsets: ``[N + 1]`` int64.
    """

    values: Tensor
    offsets: Tensor

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Values and lengths of the users ``index``, in that order, without a loop over users."""
        lengths = self.offsets[index + 1] - self.offsets[index]
        ends = lengths.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        shift = torch.repeat_interleave(self.offsets[index] - (ends - lengths), lengths, output_size=total)
        return self.values[torch.arange(total) + shift], lengths


@dataclass(frozen=True)
class RCTTable:
    """Columns of N rows; see :class:`RCTBatch` for the fields that both share.

    Attributes:
        ids: id feature name to ``[N]`` int64 table rows, or to an :class:`IdList`; in schema order.
        user: ``[N]`` int64 identity of the user behind a row: what bootstrap resamples and outputs name.
    """

    user: Tensor
    dense: Tensor
    ids: dict[str, Tensor | IdList]
    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor
    true_value: Tensor | None = None
    true_cost: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.treatment.shape[0]

    @property
    def has_oracle(self) -> bool:
        return self.true_value is not None

    def select(self, index: Tensor) -> RCTTable:
        """The rows ``index``, in that order."""
        columns: dict[str, Any] = {
            f.name: x[index] for f in fields(self) if f.name != "ids" and (x := getattr(self, f.name)) is not None
        }
        ids: dict[str, Tensor | IdList] = {}
        for name, column in self.ids.items():
            if isinstance(column, IdList):
                values, lengths = column.gather(index)
                ids[name] = IdList(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]))
            else:
                ids[name] = column[index]
        return RCTTable(**columns, ids=ids)

    def batch(self, index: Tensor) -> RCTBatch:
        """Collate the rows ``index`` (``[n]`` int64); index −1 − i repeats row i as filling, marked by ``row`` −1."""
        row = torch.where(index < 0, -1, index)
        index = torch.where(index < 0, -1 - index, index)
        values, lengths = [], []
        for column in self.ids.values():
            v, n = column.gather(index) if isinstance(column, IdList) else (column[index], torch.ones_like(index))
            values.append(v)
            lengths.append(n)
        sparse = KeyedJaggedTensor(list(self.ids), torch.cat(values), lengths=torch.cat(lengths)) if values else None
        return RCTBatch(
            dense=self.dense[index],
            sparse=sparse,
            treatment=self.treatment[index],
            value=self.value[index],
            cost=self.cost[index],
            propensity=self.propensity[index],
            row=row,
            true_value=None if self.true_value is None else self.true_value[index],
            true_cost=None if self.true_cost is None else self.true_cost[index],
            weight=None if self.weight is None else self.weight[index],
        )

    def without_oracle(self) -> RCTTable:
        """The same rows as a real trial would show them."""
        return replace(self, true_value=None, true_cost=None)


def concatenate(tables: Sequence[RCTTable]) -> RCTTable:
    """The rows of several tables with equal columns, one after the other."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    columns: dict[str, Any] = {
        f.name: torch.cat([getattr(t, f.name) for t in tables])
        for f in fields(RCTTable)
        if f.name != "ids" and getattr(first, f.name) is not None
    }
    ids: dict[str, Tensor | IdList] = {}
    for name, column in first.ids.items():
        parts: list[Any] = [t.ids[name] for t in tables]
        if isinstance(column, IdList):
            lengths = torch.cat([p.offsets.diff() for p in parts])
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            ids[name] = IdList(torch.cat([p.values for p in parts]), offsets)
        else:
            ids[name] = torch.cat(parts)
    return RCTTable(**columns, ids=ids)
