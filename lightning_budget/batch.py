"""The two values that travel between data, model, losses and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor as KeyedJaggedTensor

from lightning_budget.prediction import ResponsePrediction as ResponsePrediction


@dataclass(frozen=True)
class RCTBatch:
    """Rows of a randomized trial: N users, K treatments, D dense features, F id features.

    The id features lie in one jagged batch, feature by feature and user by user within a feature::

        keys     user_id      viewed
        lengths  [1, 1, 1]    [2, 0, 3]
        values   [7, 3, 9]    [4, 1,  | | 8, 2, 5]

    Attributes:
        dense: ``[N, D]`` float32, as measured (the model standardises).
        sparse: ``KeyedJaggedTensor`` over the F id features, or ``None`` where there are none.
        treatment: ``[N]`` int64, the arm given; 0 is control.
        value, cost: ``[N]`` float32, observed under the arm given.
        propensity: ``[N]`` float32, probability of the arm given.
        row: ``[N]`` int64, position in the split; −1 marks a row that only fills up a batch.
        true_value, true_cost: ``[N, K]`` float32 oracle means, where a simulator knows them.
        weight: ``[N]`` float32 sample weights ≥ 0: a row of weight 2 counts as two; ``None``: every row counts once.
    """

    dense: Tensor
    sparse: KeyedJaggedTensor | None
    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor
    row: Tensor
    true_value: Tensor | None = None
    true_cost: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.treatment.shape[0]

    def _map(self, fn: Callable[[Any], Any]) -> RCTBatch:
        present = {f.name: x for f in fields(self) if (x := getattr(self, f.name)) is not None}
        return replace(self, **{name: fn(x) for name, x in present.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> RCTBatch:
        """Move to a device; from pinned memory with ``non_blocking`` the copy overlaps with compute."""
        return self._map(lambda x: x.to(device=torch.device(device), non_blocking=non_blocking))

    def pin_memory(self) -> RCTBatch:
        """Copy into page-locked memory; called by ``DataLoader(pin_memory=True)``."""
        return self._map(lambda x: x.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until ``stream`` is done with it."""
        for f in fields(self):
            if (x := getattr(self, f.name)) is not None:
                x.record_stream(stream)

    def __getitem__(self, rows: slice) -> RCTBatch:
        """A contiguous slice of users.

        Raises:
            TypeError: if ``rows`` is not a slice without step.
        """
        if not isinstance(rows, slice) or rows.step not in (None, 1):
            raise TypeError(f"RCTBatch takes a slice without step, got {rows!r}")
        start, stop, _ = rows.indices(len(self))

        def cut(x: Any) -> Any:
            return _slice_jagged(x, len(self), start, stop) if isinstance(x, KeyedJaggedTensor) else x[start:stop]

        return self._map(cut)

    def filling(self, n: int) -> RCTBatch:
        """``n`` users that count for nothing: these rows again and again, each marked by ``row`` −1.

        Raises:
            ValueError: if there is no row to repeat.
        """
        return self._repeated(n, 0)

    def padded(self, n: int) -> RCTBatch:
        """These rows, followed by filling up to ``n``.

        Raises:
            ValueError: if there are more rows than ``n``, or none to repeat.
        """
        if n < len(self):
            raise ValueError(f"a batch of {len(self)} rows cannot be filled up to {n}")
        return self._repeated(n, len(self))

    def _repeated(self, n: int, real: int) -> RCTBatch:
        if n > 0 and len(self) == 0:
            raise ValueError("a batch of 0 rows has nothing to repeat")
        position = torch.arange(n, device=self.row.device)
        index = position % max(1, len(self))

        def take(x: Any) -> Any:
            return _select_jagged(x, len(self), index) if isinstance(x, KeyedJaggedTensor) else x[index]

        batch = self._map(take)
        return replace(batch, row=batch.row.where(position < real, -1))


def _slice_jagged(sparse: KeyedJaggedTensor, users: int, start: int, stop: int) -> KeyedJaggedTensor:
    # Not by to_dict(), which fails on a batch of no users.
    keys, ids = sparse.keys(), sparse.values()
    first = torch.arange(len(keys), device=ids.device) * users
    bounds = sparse.offsets()[torch.stack([first + start, first + stop])].T.tolist()
    values = torch.cat([ids[i:j] for i, j in bounds])
    lengths = sparse.lengths().view(len(keys), users)[:, start:stop].flatten()
    return KeyedJaggedTensor.from_lengths_sync(keys, values, lengths)


def _select_jagged(sparse: KeyedJaggedTensor, users: int, index: Tensor) -> KeyedJaggedTensor:
    keys = sparse.keys()
    lengths = sparse.lengths().view(len(keys), users)[:, index].flatten()
    starts = sparse.offsets()[:-1].view(len(keys), users)[:, index].flatten()
    total = int(lengths.sum())
    shift = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths, output_size=total)
    values = sparse.values()[torch.arange(total, device=shift.device) + shift]
    return KeyedJaggedTensor.from_lengths_sync(keys, values, lengths)
