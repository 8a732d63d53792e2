"""Table rows that were given to another id start anew: weight and optimizer state zero, wherever the table lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.types import ShardedModule, ShardingPlan

from lightning_budget.errors import InputError
from lightning_budget.models.embeddings import SparseEncoder

IN_MEMORY = ("fused", "fused_uvm")
"""Kernels that look rows up where they lie, and not in a cache."""


def refuse_cached_tables(module: nn.Module, plan: ShardingPlan) -> None:
    """Refuse a plan that keeps copies of a managed feature's rows in a cache, which would not be zeroed.

    Raises:
        InputError: naming table and kernel.
    """
    for path, encoder in module.named_modules():
        if isinstance(encoder, SparseEncoder) and encoder.managed is not None:
            tables: Any = plan.get_plan_for_module(f"{path}.tables") or {}
            for name in encoder.managed.names:
                if name in tables and tables[name].compute_kernel not in IN_MEMORY:
                    raise InputError(
                        f"table {name!r} of managed ids in kernel {tables[name].compute_kernel!r}",
                        ", ".join(IN_MEMORY),
                        f"+sharding.tables.{name}.kernels=[fused_uvm], or hash its ids (data.hashed)",
                    )


@torch.no_grad()
def start_rows_anew(encoder: SparseEncoder, given: Mapping[str, Tensor]) -> None:
    """Zero rows of an encoder's tables and the state of the optimizers that step inside backward.

    Args:
        encoder: sharded or not; each process zeroes what it holds.
        given: rows by feature, of :meth:`~lightning_budget.models.managed_collisions.ManagedIds.observe`; equal on
            all processes.
    """
    if not given:
        return
    weights = encoder.tables.state_dict()
    for name, rows in given.items():
        weight = weights[f"embedding_bags.{name}.weight"]
        for tensor in (weight, *_optimizer_state(encoder, name)):
            _zero(tensor, rows, weight.size()[0])


def _optimizer_state(encoder: SparseEncoder, name: str) -> Iterator[Any]:
    tables: Any = encoder.tables
    if isinstance(tables, ShardedModule):
        optimizer: Any = tables.fused_optimizer
        for key, entries in optimizer.state_dict()["state"].items():
            if key.endswith(f"embedding_bags.{name}.weight"):
                yield from entries.values()
        return
    parameter = tables.embedding_bags[name].weight
    for optimizer in getattr(parameter, "_in_backward_optimizers", []):
        yield from optimizer.state[parameter].values()


def _zero(tensor: Any, rows: Tensor, height: int) -> None:
    """Zero ``rows`` of a tensor whose first dimension counts a table's rows, once or once for each column shard."""
    if isinstance(tensor, ShardedTensor):
        for shard in tensor.local_shards():
            first, sizes = shard.metadata.shard_offsets[0], shard.metadata.shard_sizes
            _zero_part(shard.tensor.view(sizes), rows, height, first, tensor.size()[0])
    elif isinstance(tensor, Tensor) and tensor.dim():
        _zero_part(tensor, rows, height, 0, tensor.size()[0])


def _zero_part(part: Tensor, rows: Tensor, height: int, first: int, whole: int) -> None:
    if whole % height:
        return
    for start in range(0, whole, height):
        local = rows + (start - first)
        local = local[(local >= 0) & (local < len(part))]
        part[local] = 0
