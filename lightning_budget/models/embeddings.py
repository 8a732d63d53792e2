"""Sparse features through TorchRec: one embedding table per id feature, pooled per user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from lightning_budget.models.managed_collisions import ManagedIds, admission_interval
from lightning_budget.schema import Eviction, SparseFeature

POLICIES = {"lfu": LFU_EvictionPolicy, "lru": LRU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}
FREE = torch.iinfo(torch.int64).max
"""TorchRec's mark of a slot that belongs to no id."""

FEATURE = "ids"
"""A name for TorchRec, which no one else sees."""


class SparseEncoder(nn.Module):
    """Look up and mean-pool each id feature, then concatenate.

    Args:
        features: F id features, in the key order of the batches.
        embedding_dim: E, width of every table.
        device: ``meta`` to describe the tables without allocating them, for a strategy to shard.

    Attributes:
        managed: maps of the features whose rows training gives and takes back; ``None`` where there are none. Whoever
            trains calls its ``observe`` before each forward and zeroes the rows it names.

    Rows start uniform in ±1/√num_embeddings, so an id never seen in training adds next to nothing.
    """

    managed: ManagedIds | None

    def __init__(
        self, features: Sequence[SparseFeature], embedding_dim: int, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.keys = [f.name for f in features]
        self.width = embedding_dim * len(self.keys)
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f.name,
                    embedding_dim=embedding_dim,
                    num_embeddings=f.num_embeddings,
                    feature_names=[f.name],
                    pooling=PoolingType.MEAN,
                )
                for f in features
            ],
            device=None if device is None else torch.device(device),
        )
        managed = [f for f in features if f.ids == "managed"]
        maps = [IdSlots(f.num_embeddings, f.eviction, admission_interval(f.num_embeddings)) for f in managed]
        names, rows = [f.name for f in managed], [f.num_embeddings for f in managed]
        self.managed = ManagedIds(names, rows, maps) if managed else None

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        """``[N, F·E]`` pooled embeddings of the N users."""
        if self.managed is not None:
            sparse = self.managed(sparse)
        pooled = self.tables(sparse)
        return torch.cat([pooled[key] for key in self.keys], dim=1)

    def rows_of(self, feature: str, sparse: KeyedJaggedTensor) -> tuple[Tensor, Tensor]:
        """Values and ``[N + 1]`` offsets of one id feature that is not managed."""
        ids = sparse[feature]
        return ids.values(), ids.offsets()


class IdSlots(MCHManagedCollisionModule):
    """TorchRec's zero-collision map as an :class:`~lightning_budget.models.managed_collisions.IdMap`.

    Args:
        rows: R slots, the last of which is shared; eviction: who loses a slot, see
            :data:`~lightning_budget.schema.EVICTIONS`; interval: batches between two admissions.
    """

    _current_iter_tensor: Tensor

    def __init__(self, rows: int, eviction: Eviction, interval: int) -> None:
        super().__init__(rows, torch.device("cpu"), POLICIES[eviction](), interval)
        self._batch_ids: int | None = None

    def observe(self, ids: Tensor) -> Tensor | None:
        """Count ids; the slots given to other ids than before."""
        self._follow_device()
        self._make_room(len(ids))
        self.profile(_as_feature(ids))
        return self.evict()

    def slots(self, ids: Tensor) -> Tensor:
        """Slots of ids."""
        return self.remap(_as_feature(ids))[FEATURE].values()

    def occupied(self) -> Tensor:
        """Slots that belong to an id."""
        return (self._mch_sorted_raw_ids != FREE).sum()

    def pending(self) -> dict[str, Any]:
        """Ids counted since the last admission, where TorchRec keeps them out of the state."""
        n = self._current_history_buffer_offset
        if self._batch_ids is None:
            return {}
        return {
            "batch_ids": self._batch_ids,
            "last_admission": self._last_eviction_iter,
            "ids": self._history_accumulator[:n].cpu().clone(),
            "metadata": {k: v[:n].cpu().clone() for k, v in self._history_metadata.items()},
        }

    def resume(self, pending: Mapping[str, Any]) -> None:
        """Inverse of :meth:`pending`."""
        self._follow_device()
        self._current_iter = self._last_eviction_iter = int(self._current_iter_tensor)
        self._current_history_buffer_offset, self._batch_ids = 0, None
        if not pending:
            return
        self._last_eviction_iter = pending["last_admission"]
        self._allocate(pending["batch_ids"])
        n = self._current_history_buffer_offset = len(pending["ids"])
        self._history_accumulator[:n] = pending["ids"]
        for name, values in pending["metadata"].items():
            self._history_metadata[name][:n] = values

    def _make_room(self, n: int) -> None:
        # TorchRec leaves out what does not fit a buffer that the first batch has given its size.
        if self._batch_ids is None:
            self._allocate(n)
        if self._current_history_buffer_offset + n <= self._input_history_buffer_size:
            return
        if self._current_history_buffer_offset:
            self._coalesce_history()
            self._last_eviction_iter = self._current_iter
        if n * self._eviction_interval > self._input_history_buffer_size:
            self._allocate(n)

    def _allocate(self, batch_ids: int) -> None:
        self._batch_ids = batch_ids
        # For as many ids from each batch of an interval, and a quarter more.
        self._init_history_buffers(_as_feature(torch.empty(batch_ids, dtype=torch.int64)))

    def _follow_device(self) -> None:
        # TorchRec holds its buffers a second time, by a name that a move to a device does not reach.
        self._device = self._mch_sorted_raw_ids.device
        for name in self._mch_metadata:
            self._mch_metadata[name] = cast(Tensor, getattr(self, f"_mch_{name}"))


def _as_feature(ids: Tensor) -> dict[str, JaggedTensor]:
    return {FEATURE: JaggedTensor(ids, lengths=ids.new_tensor([len(ids)]))}
