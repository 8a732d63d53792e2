"""How embedding tables are laid over ranks, and how their rows start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

INIT_CHUNK_ROWS = 1 << 16


class RowWiseOnCpuSharder(EmbeddingBagCollectionSharder):
    """The stock sharder hides row-wise sharding on CPU, although gloo runs it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        row_wise = ShardingType.ROW_WISE.value
        return types if row_wise in types else [*types, row_wise]


def sharders() -> list[ModuleSharder[nn.Module]]:
    """What can be sharded: embedding bag collections."""
    return [cast("ModuleSharder[nn.Module]", RowWiseOnCpuSharder())]


def embedding_tables(module: nn.Module) -> Iterator[tuple[str, EmbeddingBagConfig]]:
    """``(path of the collection, table config)`` of every table that is not sharded yet."""
    for path, child in module.named_modules():
        # Sharded collections derive from other classes; a subclass of the plain one is left to its author.
        if type(child) is EmbeddingBagCollection:
            yield from ((path, config) for config in child.embedding_bag_configs())


def sharding_plan(
    module: nn.Module, device: torch.device, world_size: int, local_world_size: int, group: dist.ProcessGroup
) -> ShardingPlan:
    """Plan every table row-wise or table-wise; the same plan on all ranks.

    Every rank plans and the errors are exchanged before anybody waits: TorchRec's collective planner raises on rank 0
    alone and leaves the others hanging.

    Raises:
        RuntimeError: on all ranks, if the planner failed on any.
    """
    tables = [config.name for _, config in embedding_tables(module)]
    if not tables:
        return ShardingPlan({})
    # Left alone, the planner lays small tables out data-parallel, where in-backward optimizers are silently ignored.
    allowed = [ShardingType.ROW_WISE.value, ShardingType.TABLE_WISE.value]
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=world_size, local_world_size=local_world_size, compute_device=device.type),
        constraints={name: ParameterConstraints(sharding_types=allowed) for name in tables},
    )
    plan, error = None, None
    try:
        plan = planner.plan(module, sharders())
    except Exception as e:
        error = f"{type(e).__name__}: {e}"
    errors: list[str | None] = [None] * world_size
    dist.all_gather_object(errors, error, group=group)
    if any(errors):
        raise RuntimeError(f"no sharding plan: {next(e for e in errors if e)}")
    plans = [plan]
    dist.broadcast_object_list(plans, src=0, group=group)
    assert plans[0] is not None
    return plans[0]


def init_rows_(table: ShardedTensor, init_fn: Callable[[Tensor], object], name: str, seed: int) -> None:
    """Initialise the local shards in place as a function of (seed, table, row) alone.

    The same seed on every rank would otherwise start equal-shaped shards identical, and the start would depend on the
    number of ranks.
    """
    rows, dim = table.size()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for shard in table.local_shards():
            (row0, col0), (n, m) = shard.metadata.shard_offsets, shard.metadata.shard_sizes
            if n == 0 or m == 0:
                continue
            local = shard.tensor.reshape(n, m)
            for chunk in range(row0 // INIT_CHUNK_ROWS, (row0 + n - 1) // INIT_CHUNK_ROWS + 1):
                first, last = chunk * INIT_CHUNK_ROWS, min((chunk + 1) * INIT_CHUNK_ROWS, rows)
                key = hashlib.blake2b(f"{seed}/{name}/{chunk}".encode(), digest_size=7).digest()
                torch.manual_seed(int.from_bytes(key, "little"))
                full = torch.empty(last - first, dim)
                init_fn(full)
                a, b = max(first, row0), min(last, row0 + n)
                local[a - row0 : b - row0].copy_(full[a - first : b - first, col0 : col0 + m])
