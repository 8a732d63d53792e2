"""Sharded tensors to plain ones and back, so that a checkpoint loads anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed._shard.sharded_tensor.metadata import ShardedTensorMetadata
from torchrec.optim.keyed import KeyedOptimizer

from lightning_budget.errors import InputError

FUSED_OPTIMIZER_KEY = "torchrec_fused_optimizer"
"""Top-level checkpoint key of the state of the optimizers that run inside backward."""
OBSERVED = "observed"
"""Top-level checkpoint key of what the learner took in of the epoch's rows and has not put to use yet."""

CHUNK_ELEMENTS = 1 << 22

LocalShards = dict[tuple[int, ...], Tensor]


def gather_full(metadata: ShardedTensorMetadata, local: LocalShards, group: dist.ProcessGroup) -> Tensor | None:
    """The whole tensor on rank 0 in host memory, ``None`` elsewhere; rows travel in bounded chunks.

    Args:
        metadata: of the sharded tensor, equal on all ranks.
        local: this rank's shards by offset.
        group: a gloo group, so that one code serves nccl runs too.
    """
    rank = dist.get_rank()
    full = torch.empty(metadata.size, dtype=metadata.tensor_properties.dtype) if rank == 0 else None
    for shard in metadata.shards_metadata:
        offsets, sizes = shard.shard_offsets, shard.shard_sizes
        if 0 in sizes:
            continue
        assert shard.placement is not None
        owner = shard.placement.rank()
        step = max(1, CHUNK_ELEMENTS // max(1, math.prod(sizes[1:])))
        columns = tuple(slice(o, o + n) for o, n in zip(offsets[1:], sizes[1:], strict=True))
        for row in range(0, sizes[0], step):
            n = min(step, sizes[0] - row)
            target = (slice(offsets[0] + row, offsets[0] + row + n), *columns)
            if owner == rank:
                part = local[tuple(offsets)].detach().reshape(sizes)[row : row + n].cpu()
                if full is not None:
                    full[target] = part
                else:
                    dist.send(part.contiguous(), 0, group=group)
            elif full is not None:
                part = torch.empty(n, *sizes[1:], dtype=full.dtype)
                dist.recv(part, owner, group=group)
                full[target] = part
    return full


def sizes(state: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Whole size of every tensor of a state, sharded or not."""
    return {k: torch.Size(t.size()) for k, t in state.items() if isinstance(t, Tensor | ShardedTensor)}


def check_sizes(saved: Mapping[str, torch.Size], live: Mapping[str, torch.Size], extra: bool = False) -> None:
    """Refuse a checkpoint that does not fit the model.

    Args:
        saved: size of each of the checkpoint's tensors; live: of the model's.
        extra: the checkpoint may hold more than the model asks for.

    Raises:
        InputError: naming the first tensor that differs, and how to extend or slice it.
    """
    for name in live if extra else {**live, **saved}:
        theirs, mine = saved.get(name), live.get(name)
        if theirs != mine:
            raise InputError(
                f"the checkpoint's {name} is {_size(theirs)}, the model's {_size(mine)}",
                "a checkpoint of the same model, embedding optimizer, tables and treatments",
                "restore the settings it was made with, or adapt it with lightning_budget.training.resize",
            )


def _size(size: torch.Size | None) -> str:
    return "absent" if size is None else " × ".join(f"{n:,}" for n in size) or "a number"


def local_shards(tensor: ShardedTensor) -> LocalShards:
    """This rank's shards by their offset."""
    return {tuple(s.metadata.shard_offsets): s.tensor for s in tensor.local_shards()}


def copy_full_into(tensor: ShardedTensor, full: Tensor, name: str) -> None:
    """Copy the rows this rank owns out of a whole tensor, in place.

    Raises:
        InputError: if the shapes differ.
    """
    check_sizes({name: full.shape}, {name: tensor.size()})
    with torch.no_grad():
        for shard in tensor.local_shards():
            offsets, sizes = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            part = full[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))]
            shard.tensor.reshape(sizes).copy_(part)


def full_state_dict(state: dict[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
    """Replace sharded tensors by whole ones; the result is complete on rank 0 and empty elsewhere."""
    full: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, ShardedTensor):
            value = gather_full(value.metadata(), local_shards(value), group)
        if dist.get_rank() == 0:
            full[key] = value
    return full


def fused_state(optimizer: KeyedOptimizer) -> dict[str, Any]:
    """State of the in-backward optimizers as one flat dictionary; only what this rank owns."""
    state = optimizer.state_dict()["state"]
    return {f"{param}|{name}": tensor for param, entries in state.items() for name, tensor in entries.items()}


def full_fused_state(optimizer: KeyedOptimizer, group: dist.ProcessGroup) -> dict[str, Tensor]:
    """Whole state of the in-backward optimizers on rank 0, empty elsewhere.

    A rank only has the keys of the tables it owns a shard of, so keys and shapes are agreed on first.
    """
    local = fused_state(optimizer)
    described: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    mine = {key: t.metadata() if isinstance(t, ShardedTensor) else None for key, t in local.items()}
    dist.all_gather_object(described, mine, group=group)
    full = {}
    for key in sorted({key for entries in described for key in entries}):
        owner, metadata = next((rank, entries[key]) for rank, entries in enumerate(described) if key in entries)
        if metadata is None:
            box = [local.get(key)]
            dist.broadcast_object_list(box, owner, group=group)
            tensor = box[0]
        else:
            tensor = gather_full(metadata, local_shards(local[key]) if key in local else {}, group)
        if dist.get_rank() == 0:
            full[key] = tensor
    return full


def load_fused_state(optimizer: KeyedOptimizer, full: Mapping[str, Tensor]) -> None:
    """Copy a :func:`full_fused_state` into the running optimizers, for any number of ranks and any sharding.

    Raises:
        InputError: if the state is another optimizer's, or of tables of another size.
    """
    mine = fused_state(optimizer)
    check_sizes({k: t.shape for k, t in full.items()}, sizes(mine), extra=True)
    for key, tensor in mine.items():
        if isinstance(tensor, ShardedTensor):
            copy_full_into(tensor, full[key], key)
        else:
            tensor.copy_(full[key])
