"""Rows for ids without bound: a map from ids to table rows that training keeps and everything else reads.

An id of 63 bits that training meets is given a row of its own; when the table is full, the row of another id, whose
embedding is lost. The map is TorchRec's (zero-collision hashing), and works on its own, before the tables::

    ids in the batch   [ 0 | 9e17 | 4e18 | 9e17 ]       0: no label
    rows               [ 0 |    7 |    0 |    7 ]       the row UNKNOWN: no label, never seen, or its row taken back

Reading the map changes nothing. Only :meth:`ManagedIds.observe`, which training calls before each forward, gives and
takes rows. It counts the ids of all processes together, so that every process holds the same map, the one that a single
process would have, and the tables can be sharded as any other.

A map takes 24 bytes a row on every process, 32 for ``distance_lfu``, beside the tables. Ids are counted for
:func:`admission_interval` batches before rows are given, because giving sorts the whole map; they wait in 10 bytes each
(20 unless ``lfu``).

Source: TorchRec's ``MCHManagedCollisionModule``, whose sharded form has no kernel on CPU to reset rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lightning_budget.batch import KeyedJaggedTensor
from lightning_budget.models.everywhere import everywhere
from lightning_budget.schema import UNKNOWN

MOST_BATCHES = 100


class IdMap(Protocol):
    """A map from ids to slots 0 … R − 1, the last of which is for ids that have none of their own."""

    def observe(self, ids: Tensor) -> Tensor | None:
        """Count ids; the slots that were given to other ids than before, or ``None``."""
        ...

    def slots(self, ids: Tensor) -> Tensor:
        """Slots of ids; changes nothing."""
        ...

    def pending(self) -> dict[str, Any]:
        """What was counted since rows were last given, for a checkpoint."""
        ...

    def resume(self, pending: Mapping[str, Any]) -> None:
        """Inverse of :meth:`pending`, once the buffers have been loaded."""
        ...

    def occupied(self) -> Tensor:
        """Number of slots that belong to an id."""
        ...


def admission_interval(rows: int) -> int:
    """Training batches between two admissions: 1 up to 20,000 rows, 100 from a million on."""
    return min(max(rows // 10_000, 1), MOST_BATCHES)


class ManagedIds(nn.Module):
    """The maps of all managed features of a batch.

    Args:
        names: of the managed features; rows: R of each table, row ``UNKNOWN`` included.
        maps: one :class:`IdMap` each.
    """

    def __init__(self, names: Sequence[str], rows: Sequence[int], maps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.names, self.rows = list(names), list(rows)
        # A list, not a dict: a column may have any name.
        self.maps = nn.ModuleList(maps)
        self._seen: list[Tensor] = []
        self._resume: Sequence[Mapping[str, Any]] | None = None

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The same batch with table rows in place of ids."""
        parts = _values_by_key(sparse)
        for name, rows, part in zip(self.names, self.rows, self._maps(), strict=True):
            # The shared slot is the last one, the shared row the first one.
            found = (part.slots(parts[name]) + 1) % rows
            parts[name] = torch.where(parts[name] == UNKNOWN, UNKNOWN, found)
        if self.training:
            self._count([parts[name] for name in self.names])
        keys = sparse.keys()
        return KeyedJaggedTensor(keys, torch.cat([parts[k] for k in keys]), lengths=sparse.lengths())

    @torch.no_grad()
    def observe(self, sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Count the ids of a training batch, of all processes together, and give rows to ids.

        A collective operation where there are several processes.

        Returns:
            By feature, the rows that were given to another id than before: their embeddings are no longer anybody's.
        """
        self._take_up()
        parts = _values_by_key(sparse)
        everybodys = everywhere([parts[name] for name in self.names])
        changed = {}
        for name, rows, part, ids in zip(self.names, self.rows, self._maps(), everybodys, strict=True):
            slots = part.observe(ids[ids != UNKNOWN])
            if slots is not None and len(slots):
                changed[name] = (slots + 1) % rows
        return changed

    def shares(self) -> dict[str, float]:
        """How the tables are filled, ``NAME/unknown`` and ``NAME/occupied``.

        Of a feature, the share of this process's training lookups since the last call that found row ``UNKNOWN``, and
        the share of the other rows that belong to an id.
        """
        found = {}
        seen, self._seen = self._seen, []
        for i, (name, rows, part) in enumerate(zip(self.names, self.rows, self._maps(), strict=True)):
            if seen:
                unknown, total = seen[i].tolist()
                found[f"{name}/unknown"] = unknown / max(total, 1)
            found[f"{name}/occupied"] = int(part.occupied()) / (rows - 1)
        return found

    def pending(self) -> list[dict[str, Any]]:
        """What the maps have counted and is not in the state dictionary yet; equal on all processes."""
        self._take_up()
        return [part.pending() for part in self._maps()]

    def resume(self, pending: Sequence[Mapping[str, Any]] | None) -> None:
        """Inverse of :meth:`pending`, before or after the state dictionary is loaded; ``None``: nothing was counted."""
        self._resume = list(pending) if pending is not None else [{}] * len(self.names)

    def _take_up(self) -> None:
        resume, self._resume = self._resume, None
        for part, pending in zip(self._maps(), resume or [], strict=False):
            part.resume(pending)

    def _maps(self) -> list[IdMap]:
        return cast("list[IdMap]", list(self.maps))

    def _count(self, rows: list[Tensor]) -> None:
        counts = [torch.stack([(x == UNKNOWN).sum(), x.new_tensor(len(x))]) for x in rows]
        self._seen = [a + b for a, b in zip(self._seen, counts, strict=True)] if self._seen else counts


def _values_by_key(sparse: KeyedJaggedTensor) -> dict[str, Tensor]:
    return dict(zip(sparse.keys(), sparse.values().split(sparse.length_per_key()), strict=True))
