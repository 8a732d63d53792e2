"""Sparse features through TorchRec: one embedding table per id feature, pooled per user."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, PoolingType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_budget.schema import SparseFeature


class SparseEncoder(nn.Module):
    """Look up and mean-pool each id feature, then concatenate.

    Args:
        features: F id features, in the key order of the batches.
        embedding_dim: E, width of every table.
        device: ``meta`` to describe the tables without allocating them, for a strategy to shard.

    Rows start uniform in ±1/√num_embeddings, so an id never seen in training adds next to nothing.
    """

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

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        """``[N, F·E]`` pooled embeddings of the N users."""
        pooled = self.tables(sparse)
        return torch.cat([pooled[key] for key in self.keys], dim=1)
