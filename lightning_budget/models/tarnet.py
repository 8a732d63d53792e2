"""TARNet: a shared representation and one head per treatment, here for value and for cost."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_budget.batch import KeyedJaggedTensor, ResponsePrediction
from lightning_budget.models.backbones import mlp
from lightning_budget.models.embeddings import SparseEncoder
from lightning_budget.models.heads import LINKS, TreatmentHeads, cost_with_known, unknown_if_none
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics


class TARNet(nn.Module):
    """Value and cost of every treatment from dense and id features.

    ``representation = trunk(dense arch(standardised dense) ‖ pooled embeddings)``, then
    ``v̂_ij = link_v(value head_j)``, ``ĉ_ij = link_c(cost head_j)``, or the known cost where an arm has one.

    Args:
        schema: names, arms and id features of the data.
        statistics: training-split moments; they become buffers, so a checkpoint carries them.
        embedding_dim: width of every embedding table.
        dense_hidden, trunk_hidden: layer widths; head_hidden: width of each treatment's head.
        dropout: applied after every trunk layer.
        sparse_device: ``meta`` leaves the tables unallocated for a sharding strategy.

    Source: Shalit, Johansson, Sontag 2017, arXiv:1606.03976.
    """

    dense_mean: Tensor
    dense_std: Tensor
    value_mean: Tensor
    cost_mean: Tensor
    known_cost: Tensor

    def __init__(
        self,
        schema: DataSchema,
        statistics: DataStatistics,
        embedding_dim: int = 16,
        dense_hidden: Sequence[int] = (32,),
        trunk_hidden: Sequence[int] = (64, 32),
        head_hidden: int = 16,
        dropout: float = 0.0,
        sparse_device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        k = schema.num_treatments
        self.value_link = LINKS["probability" if schema.value_kind == "binary" else "identity"]
        self.cost_link = LINKS["probability" if schema.cost_kind == "binary" else "positive"]
        self.value_scale, self.cost_scale = statistics.value_scale, statistics.cost_scale
        for name, values in (
            ("dense_mean", statistics.dense_mean),
            ("dense_std", statistics.dense_std),
            ("value_mean", statistics.value_mean),
            ("cost_mean", statistics.cost_mean),
        ):
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32))
        self.register_buffer("known_cost", unknown_if_none(schema.known_cost))

        self.sparse_arch = SparseEncoder(schema.sparse, embedding_dim, sparse_device) if schema.sparse else None
        self.dense_arch = mlp(len(schema.dense), dense_hidden) if schema.dense else None
        width = (dense_hidden[-1] if schema.dense else 0) + (self.sparse_arch.width if self.sparse_arch else 0)
        self.trunk = mlp(width, trunk_hidden, dropout)
        self.value_heads = TreatmentHeads(trunk_hidden[-1], k, head_hidden)
        self.cost_heads = TreatmentHeads(trunk_hidden[-1], k, head_hidden)

    def represent(self, dense: Tensor, sparse: KeyedJaggedTensor | None) -> Tensor:
        """Shared representation ``[N, trunk_hidden[-1]]`` of ``dense [N, D]`` as measured and the id features."""
        parts = []
        if self.dense_arch is not None:
            parts.append(self.dense_arch(((dense - self.dense_mean) / self.dense_std).clamp(-8, 8)))
        if self.sparse_arch is not None:
            parts.append(self.sparse_arch(sparse))
        return self.trunk(torch.cat(parts, dim=1))

    def respond(self, representation: Tensor) -> ResponsePrediction:
        """Value and cost ``[N, K]`` of every treatment from the shared representation."""
        value = self.value_link(self.value_heads(representation), self.value_mean, self.value_scale)
        cost = self.cost_link(self.cost_heads(representation), self.cost_mean, self.cost_scale)
        return ResponsePrediction(value, cost_with_known(cost, self.known_cost))

    def forward(self, dense: Tensor, sparse: KeyedJaggedTensor | None) -> ResponsePrediction:
        """Value and cost ``[N, K]`` of every treatment."""
        return self.respond(self.represent(dense, sparse))
