"""What is planned for: a machine, the tables, and how they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torchrec.distributed.planner import Topology
from torchrec.distributed.planner.types import ParameterConstraints
from torchrec.distributed.types import CacheParams
from torchrec.modules.embedding_configs import DataType, EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from lightning_budget.errors import InputError
from lightning_budget.training.optimizers import EMBEDDING_OPTIMIZERS

GIB = 1 << 30
USERS = "user_id"
"""The table of the users."""
PRECISIONS = {"fp32": DataType.FP32, "fp16": DataType.FP16}
BYTES = {"fp32": 4, "fp16": 2}
SHARDING = ("row_wise", "table_wise")
KERNELS = {"cuda": ("fused", "fused_uvm", "fused_uvm_caching"), "cpu": ("fused",)}


def size(amount: float) -> str:
    """Bytes for people, with three or four digits."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(amount) >= factor:
            number = amount / factor
            return f"{number:,.{0 if number >= 1000 else 1 if number >= 100 else 2}f} {unit}"
    return f"{amount:,.0f} B"


def count(number: float) -> str:
    """A number of rows in short: 1e10, 3.5e9, 250."""
    return f"{number:.3g}".replace("e+0", "e").replace("e+", "e")


def require(holds: bool, found: str, allowed: str, fix: str) -> None:
    """Raise an :class:`InputError` unless ``holds``."""
    if not holds:
        raise InputError(found, allowed, fix)


@dataclass(frozen=True)
class Machine:
    """Equal nodes, each with equal ranks.

    Attributes:
        ranks: R, processes, one device each.
        ranks_per_node: at most; fewer ranks than that lie in one node.
        hbm: bytes on the device of a rank; not looked at on CPU.
        ddr: bytes of host memory in a node, shared equally by its ranks.
        intra, inter: bytes a second and direction that a rank exchanges within a node, and between nodes.
        host: bytes a second between a device and host memory.
        device: ``cuda`` or ``cpu``.
    """

    ranks: int
    ranks_per_node: int = 8
    hbm: int = 80 * GIB
    ddr: int = 2000 * GIB
    intra: float = 600 * GIB
    inter: float = 12.5 * GIB
    host: float = 32 * GIB
    device: str = "cuda"

    def __post_init__(self) -> None:
        require(self.device in KERNELS, f"device={self.device!r}", ", ".join(KERNELS), "device=cuda")
        for name in ("ranks", "ranks_per_node", "hbm", "ddr", "intra", "inter", "host"):
            value = getattr(self, name)
            require(value > 0, f"{name}={value:g}", "above 0", f"give a {name} above 0")
        require(
            self.ranks % self.local_ranks == 0,
            f"ranks={self.ranks} with ranks_per_node={self.ranks_per_node}",
            "whole nodes",
            f"ranks={-(-self.ranks // self.local_ranks) * self.local_ranks}",
        )

    @property
    def local_ranks(self) -> int:
        """Ranks of a node."""
        return min(self.ranks, self.ranks_per_node)

    @property
    def ddr_per_rank(self) -> int:
        """Bytes of host memory for one rank."""
        return self.ddr // self.local_ranks

    @property
    def link(self) -> float:
        """Bytes a second of the slowest link that an exchange among all ranks crosses, as the planner takes it."""
        return self.intra if self.ranks == self.local_ranks else self.inter

    def topology(self) -> Topology:
        """The machine in TorchRec's words (milliseconds, and host memory per rank)."""
        return Topology(
            world_size=self.ranks,
            local_world_size=self.local_ranks,
            compute_device=self.device,
            hbm_cap=self.hbm,
            ddr_cap=self.ddr_per_rank,
            intra_host_bw=self.intra / 1000,
            inter_host_bw=self.inter / 1000,
            hbm_to_ddr_mem_bw=self.host / 1000,
        )


@dataclass(frozen=True)
class Table:
    """An embedding table and how often it is looked up.

    Attributes:
        name: unique.
        rows, dim: numbers in it are ``rows * dim``.
        ids: mean number of ids in a bag, that is per row of data.
    """

    name: str
    rows: int
    dim: int
    ids: float = 1.0

    def __post_init__(self) -> None:
        where = f"table {self.name!r}:"
        require(self.rows >= 1, f"{where} {self.rows} rows", "at least 1", "give its number of ids")
        # FBGEMM reads rows four numbers at a time.
        require(
            self.dim >= 4 and self.dim % 4 == 0,
            f"{where} dim {self.dim}",
            "multiples of 4",
            f"dim {max(4, 4 * round(self.dim / 4))}",
        )
        require(self.ids > 0, f"{where} {self.ids:g} ids per row of data", "above 0", "1 for a single id")


@dataclass(frozen=True)
class Job:
    """Tables and how they are trained.

    Attributes:
        tables: at least one.
        batch_size: rows of a global batch, over all ranks together.
        optimizer: name in :data:`~lightning_budget.training.optimizers.EMBEDDING_OPTIMIZERS`.
        precision: of the tables, ``fp32`` or ``fp16``; optimizer state and what is exchanged stay fp32.
        dense_parameters: P, weights outside the tables, a copy on every rank.
        user_history: whether every rank keeps a history of each row of the table :data:`USERS`.
        sharding, kernels: what the planner may choose from; kernels that the device lacks are passed over.
        cache_load_factor: share of a table's rows that ``fused_uvm_caching`` keeps on the device.
    """

    tables: Sequence[Table]
    batch_size: int = 65536
    optimizer: str = "rowwise_adagrad"
    precision: str = "fp32"
    dense_parameters: int = 1_000_000
    user_history: bool = False
    sharding: Sequence[str] = SHARDING
    kernels: Sequence[str] = KERNELS["cuda"]
    cache_load_factor: float = 0.2

    def __post_init__(self) -> None:
        names = [t.name for t in self.tables]
        require(bool(names), "no table", "at least one", "give users=1e9")
        twice = sorted({n for n in names if names.count(n) > 1})
        require(not twice, f"two tables named {twice}", "names used once", "rename one")
        optimizers = EMBEDDING_OPTIMIZERS
        require(
            self.optimizer in optimizers,
            f"optimizer={self.optimizer!r}",
            ", ".join(optimizers),
            "optimizer=rowwise_adagrad",
        )
        require(self.precision in PRECISIONS, f"precision={self.precision!r}", ", ".join(PRECISIONS), "precision=fp32")
        require(self.dense_parameters >= 0, f"dense_parameters={self.dense_parameters}", "at least 0", "0 leaves out")
        require(
            not self.user_history or USERS in names,
            f"user_history=true without a table {USERS!r}",
            "a table of that name",
            "give users=1e9, or user_history=false",
        )
        for key, allowed in (("sharding", SHARDING), ("kernels", KERNELS["cuda"])):
            given = list(getattr(self, key))
            require(
                bool(given) and set(given) <= set(allowed),
                f"{key}={given}",
                f"one or more of {', '.join(allowed)}",
                f"{key}=[{allowed[0]}]",
            )
        require(
            0 < self.cache_load_factor < 1,
            f"cache_load_factor={self.cache_load_factor:g}",
            "between 0 and 1",
            "cache_load_factor=0.2",
        )

    def check_runs_on(self, machine: Machine) -> None:
        """Refuse what this machine has no kernel or no equal batches for.

        Raises:
            InputError: for a batch that does not divide, the Adam family on CPU, or kernels of another device.
        """
        r = machine.ranks
        require(
            self.batch_size >= r and self.batch_size % r == 0,
            f"batch_size={self.batch_size} over {r} ranks",
            f"a positive multiple of {r}",
            f"batch_size={max(1, round(self.batch_size / r)) * r}",
        )
        require(
            machine.device == "cuda" or EMBEDDING_OPTIMIZERS[self.optimizer].on_cpu,
            f"optimizer={self.optimizer!r} with device={machine.device!r}",
            "an optimizer that FBGEMM has on CPU",
            "optimizer=rowwise_adagrad",
        )
        require(
            bool(set(self.kernels) & set(KERNELS[machine.device])),
            f"kernels={list(self.kernels)} with device={machine.device!r}",
            ", ".join(KERNELS[machine.device]),
            "kernels=[fused]",
        )

    def constraints(self) -> dict[str, ParameterConstraints]:
        """What the planner may choose from, by table."""
        return {
            t.name: ParameterConstraints(
                sharding_types=list(self.sharding),
                compute_kernels=list(self.kernels),
                pooling_factors=[t.ids],
                cache_params=CacheParams(load_factor=self.cache_load_factor),
                # What FBGEMM returns, from fp16 tables too.
                output_dtype=DataType.FP32,
            )
            for t in self.tables
        }

    def module(self) -> nn.Module:
        """The tables on ``meta``: shapes without memory."""
        tables = EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=t.name,
                    embedding_dim=t.dim,
                    num_embeddings=t.rows,
                    feature_names=[t.name],
                    pooling=PoolingType.MEAN,
                    data_type=PRECISIONS[self.precision],
                )
                for t in self.tables
            ],
        )
        return nn.ModuleDict({"tables": tables})
