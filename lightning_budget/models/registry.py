"""Models over TorchRec's tables: how training and scoring build one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lightning_budget.models.embeddings import SparseEncoder
from lightning_budget.models.learner import Learner
from lightning_budget.models.learners import MODELS as MODELS
from lightning_budget.models.learners import assemble, model_options
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics


def build_model(
    config: Mapping[str, Any],
    schema: DataSchema,
    statistics: DataStatistics,
    sparse_device: torch.device | str | None = None,
) -> Learner:
    """Build ``config["name"]`` with the other entries as its options.

    Args:
        config: see :func:`~lightning_budget.models.learners.model_options`.
        schema, statistics: of the data.
        sparse_device: ``meta`` leaves the tables unallocated for a sharding strategy.

    Raises:
        InputError: if no model has that name, or its options are not allowed.
    """
    width = model_options(config).embedding_dim
    encoder = SparseEncoder(schema.sparse, width, sparse_device) if schema.sparse else None
    return assemble(config, schema, statistics.to_dict(), encoder)
