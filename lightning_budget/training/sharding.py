"""Embedding tables of a module: which there are, who can shard them, and how their rows start."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder, ShardingType
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

INIT_CHUNK_ROWS = 1 << 16


class RowWiseOnCpuSharder(EmbeddingBagCollectionSharder):
    """The stock sharder hides row-wise sharding on CPU, although gloo runs it."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        return [
            *types,
            *(t.value for t in (ShardingType.ROW_WISE, ShardingType.TABLE_ROW_WISE) if t.value not in types),
        ]


def sharders() -> list[ModuleSharder[nn.Module]]:
    """What can be sharded: embedding bag collections."""
    return [cast("ModuleSharder[nn.Module]", RowWiseOnCpuSharder())]


def embedding_tables(module: nn.Module) -> Iterator[tuple[str, EmbeddingBagConfig]]:
    """``(path of the collection, table config)`` of every table that is not sharded yet."""
    for path, child in module.named_modules():
        # Sharded collections derive from other classes; a subclass of the plain one is left to its author.
        if type(child) is EmbeddingBagCollection:
            yield from ((path, config) for config in child.embedding_bag_configs())


def table_parameter(module: nn.Module, path: str, config: EmbeddingBagConfig) -> nn.Parameter:
    """Weight of a table that :func:`embedding_tables` named."""
    return module.get_parameter(f"{path}.embedding_bags.{config.name}.weight")


def init_rows_(local: Tensor, config: EmbeddingBagConfig, seed: int, row0: int = 0, col0: int = 0) -> None:
    """Initialise a part of a table in place as a function of (seed, table, row) alone.

    The same seed on every rank would otherwise start equal-shaped shards identical, and the start would depend on the
    number of ranks.

    Args:
        local: ``[n, m]``, rows ``row0 …`` and columns ``col0 …`` of the table.
        config: of the table; its ``init_fn`` fills ``[rows, D]`` blocks.
        seed: of the run.
    """
    (n, m), init_fn = local.shape, cast("Callable[[Tensor], object]", config.init_fn)
    if n == 0 or m == 0:
        return
    rows, dim = config.num_embeddings, config.embedding_dim
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for chunk in range(row0 // INIT_CHUNK_ROWS, (row0 + n - 1) // INIT_CHUNK_ROWS + 1):
            first, last = chunk * INIT_CHUNK_ROWS, min((chunk + 1) * INIT_CHUNK_ROWS, rows)
            key = hashlib.blake2b(f"{seed}/{config.name}/{chunk}".encode(), digest_size=7).digest()
            torch.manual_seed(int.from_bytes(key, "little"))
            full = torch.empty(last - first, dim)
            init_fn(full)
            a, b = max(first, row0), min(last, row0 + n)
            local[a - row0 : b - row0].copy_(full[a - first : b - first, col0 : col0 + m])


def init_shards_(table: ShardedTensor, config: EmbeddingBagConfig, seed: int) -> None:
    """Initialise this rank's shards of a table; see :func:`init_rows_`."""
    for shard in table.local_shards():
        (row0, col0), sizes = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        init_rows_(shard.tensor.reshape(sizes), config, seed, row0, col0)


def materialize_tables(module: nn.Module, seed: int) -> None:
    """Give tables described on ``meta`` ordinary memory and the start they would have had sharded."""
    for path, config in embedding_tables(module):
        weight = torch.empty(config.num_embeddings, config.embedding_dim)
        init_rows_(weight, config, seed)
        bag = module.get_submodule(f"{path}.embedding_bags.{config.name}")
        bag.weight = nn.Parameter(weight)
