"""The training loops that ``training.py`` compares, taking turns in one process.

Lightning's loop is the outer one: the batches it asks for come from :class:`Turns`, which lets the others have their
turn before it hands out the next.
"""

from __future__ import annotations

import logging
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torchrec.distributed import DistributedModelParallel
from workload import Workload, digest

from lightning_budget.batch import RCTBatch
from lightning_budget.losses.response import response_losses
from lightning_budget.models.registry import build_model
from lightning_budget.training.callbacks import Throughput
from lightning_budget.training.checkpoint import fused_state, local_shards
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.optimizers import dense_parameters, step_in_backward
from lightning_budget.training.plan import ShardingConfig, make_plan
from lightning_budget.training.sharding import embedding_tables, init_rows_, init_shards_, sharders
from lightning_budget.training.strategy import TorchRecStrategy

LR, EMBEDDING_LR, SEED = 1e-3, 0.05, 0
SHARDING = ShardingConfig()
"""What everybody gets who asks for nothing else."""
CHECKED = 8
"""First steps, whose batches and losses are compared."""
DISTINCT = 24
"""Batches that are drawn; then they repeat."""
NEVER = 1 << 40
LIGHTNING = ("lightning", "logged", "throughput")
PLAIN = ("raw", "bag_adagrad", "bag_sparse_adam")


@dataclass
class Loop:
    """One loop's measurements.

    Attributes:
        cpu, wall: seconds per step of each turn.
        losses, batches: of the first steps, the batches as fingerprints.
        state_bytes: of the tables' optimizer.
        plan: sharding type and kernel of every table, empty without TorchRec.
    """

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    batches: list[str] = field(default_factory=list)
    state_bytes: int = 0
    plan: dict[str, tuple[str, str]] = field(default_factory=dict)

    def saw(self, batch: RCTBatch, loss: Tensor) -> None:
        if len(self.losses) < CHECKED:
            self.losses.append(float(loss.detach()))
            self.batches.append(digest([batch]))


class PlainIds(dict[str, tuple[Tensor, Tensor]]):
    """``(ids, offsets)`` of every feature, as ``nn.EmbeddingBag`` takes them."""

    def to(self, device: torch.device, non_blocking: bool = False) -> PlainIds:
        return PlainIds({k: (i.to(device), o.to(device)) for k, (i, o) in self.items()})

    def values(self) -> Tensor:  # type: ignore[override]
        """All ids, as a KeyedJaggedTensor has them."""
        return torch.cat([ids for ids, _ in super().values()])

    def lengths(self) -> Tensor:
        """As a KeyedJaggedTensor has them."""
        return torch.cat([offsets.diff() for _, offsets in super().values()])


def with_plain_ids(batch: RCTBatch) -> RCTBatch:
    assert batch.sparse is not None
    ids = {k: (x.values().clone(), x.offsets().clone()) for k, x in batch.sparse.to_dict().items()}
    return replace(batch, sparse=cast(Any, PlainIds(ids)))


class BagEncoder(nn.Module):
    """The model's sparse encoder from ``nn.EmbeddingBag(sparse=True)``, with the same start."""

    def __init__(self, described: nn.Module) -> None:
        super().__init__()
        self.width, self.bags = described.width, nn.ModuleDict()
        for _, config in embedding_tables(described):
            weight = torch.empty(config.num_embeddings, config.embedding_dim)
            init_rows_(weight, config, SEED)
            self.bags[config.name] = nn.EmbeddingBag(
                *weight.shape, mode="mean", sparse=True, include_last_offset=True, _weight=weight
            )

    def forward(self, sparse: PlainIds) -> Tensor:
        return torch.cat([bag(*sparse[name]) for name, bag in self.bags.items()], dim=1)


class PlainLoop:
    """A loop as anybody writes it.

    Args:
        loss_of: scalar loss of a batch; optimizers: all that step.
        batches: in host memory, taken in turn.
    """

    def __init__(
        self,
        loss_of: Callable[[RCTBatch], Tensor],
        optimizers: Sequence[torch.optim.Optimizer],
        batches: Sequence[RCTBatch],
        device: torch.device,
    ) -> None:
        self.loss_of, self.optimizers, self.batches, self.device = loss_of, optimizers, batches, device
        self.served = 0

    def run(self, steps: int, record: Loop) -> None:
        for _ in range(steps):
            host_batch = self.batches[self.served % len(self.batches)]
            self.served += 1
            batch = host_batch.to(self.device, non_blocking=True)
            loss = self.loss_of(batch)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            record.saw(host_batch, loss)


def loss_function(workload: Workload, net: nn.Module, device: torch.device) -> Callable[[RCTBatch], Tensor]:
    schema, statistics = workload.schema, workload.statistics
    share = torch.tensor(statistics.arm_share, device=device)
    kinds, scales = (schema.value_kind, schema.cost_kind), (statistics.value_scale, statistics.cost_scale)
    return lambda batch: response_losses(batch, net(batch.dense, batch.sparse), share, *kinds, *scales).mean()


def network(workload: Workload) -> nn.Module:
    torch.manual_seed(SEED)
    return build_model(workload.model, workload.schema, workload.statistics, "meta")


def raw_loop(workload: Workload, batches: Sequence[RCTBatch], device: torch.device, record: Loop) -> PlainLoop:
    """TorchRec without Lightning: DistributedModelParallel, fused row-wise Adagrad, Adam on the rest."""
    net = network(workload)
    step_in_backward(net.sparse_arch, EMBEDDING_LR)
    tables = list(embedding_tables(net))
    plan = make_plan(net, SHARDING, device, world_size=1, local_world_size=1)
    dmp = DistributedModelParallel(net, device=device, plan=plan, sharders=sharders(), init_data_parallel=False)
    for path, config in tables:
        init_shards_(net.state_dict()[f"{path}.embedding_bags.{config.name}.weight"], config, SEED)
    dmp.init_data_parallel()
    adam = torch.optim.Adam(dense_parameters(dmp), lr=LR)
    record.state_bytes, record.plan = fused_bytes(dmp.fused_optimizer), plan_of(dmp)
    return PlainLoop(loss_function(workload, dmp, device), [dmp.fused_optimizer, adam], batches, device)


def bag_loop(
    workload: Workload, batches: Sequence[RCTBatch], device: torch.device, kind: type[torch.optim.Optimizer]
) -> PlainLoop:
    """Plain PyTorch: ``nn.EmbeddingBag(sparse=True)`` and an optimizer that takes sparse gradients."""
    net = network(workload)
    net.sparse_arch = BagEncoder(net.sparse_arch)
    net.to(device)
    tables = list(net.sparse_arch.parameters())
    adam = torch.optim.Adam([p for p in net.parameters() if all(p is not t for t in tables)], lr=LR)
    return PlainLoop(loss_function(workload, net, device), [kind(tables, lr=EMBEDDING_LR), adam], batches, device)


class Switched(BudgetModule):
    """Logs as its class does while ``logs`` is set, and nothing otherwise."""

    logs = False
    record: Loop

    def training_step(self, batch: RCTBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.record.saw(batch, loss)
        return loss

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """As the class above, or nothing."""
        if self.logs:
            super().log_dict(*args, **kwargs)


class SwitchedThroughput(Throughput):
    """Works while ``works`` is set."""

    works = False

    def on_train_batch_start(self, *args: Any) -> None:
        if self.works:
            super().on_train_batch_start(*args)

    def on_train_batch_end(self, *args: Any) -> None:
        if self.works:
            super().on_train_batch_end(*args)


class Turns(L.Callback):
    """Serves Lightning's loop, and lets the other loops run in between.

    Args:
        workload: of all loops.
        rounds: turns of each loop; untimed, timed: steps of a turn.
        plain: names of the other loops.
    """

    def __init__(self, workload: Workload, rounds: int, untimed: int, timed: int, plain: Sequence[str]) -> None:
        self.workload, self.rounds, self.untimed, self.timed = workload, rounds, untimed, timed
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self.records = {name: Loop() for name in (*plain, *LIGHTNING)}
        self.names = list(self.records)
        self.plain: dict[str, PlainLoop] = {}
        self.batches = [workload.batch(seed) for seed in range(DISTINCT)]
        self.module = Switched(
            workload.schema.to_dict(), workload.statistics.to_dict(), workload.model, LR, EMBEDDING_LR, seed=SEED
        )
        self.module.record = self.records["lightning"]
        self.throughput = SwitchedThroughput(every_n_steps=NEVER)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The other loops, in the process group that the strategy made."""
        strategy = cast(TorchRecStrategy, trainer.strategy)
        for name in LIGHTNING:
            self.records[name].plan = plan_of(strategy.model)
            self.records[name].state_bytes = fused_bytes(strategy.fused_optimizer)
        bags = [with_plain_ids(b) for b in self.batches]
        for name in self.names:
            if name == "raw":
                self.plain[name] = raw_loop(self.workload, self.batches, self.device, self.records[name])
            elif name in PLAIN:
                kind = torch.optim.Adagrad if name == "bag_adagrad" else torch.optim.SparseAdam
                self.plain[name] = bag_loop(self.workload, bags, self.device, kind)

    def __len__(self) -> int:
        # Lightning fetches one batch ahead of a loader that does not know its length, which would shift the times.
        return NEVER

    def __iter__(self) -> Iterator[RCTBatch]:
        served = 0
        # First everybody's first steps, then turns, in random order: who comes after whom decides what is in the cache.
        turns = [(name, CHECKED, 0) for name in (*self.plain, "lightning")]
        for r in range(self.rounds):
            order = random.Random(r).sample(self.names, len(self.names))
            turns += [(name, self.untimed, self.timed) for name in order]
        for name, untimed, timed in turns:
            record = self.records[name]
            start = self._clocks()
            if name in self.plain:
                self.plain[name].run(untimed, record)
                start = self._clocks()
                self.plain[name].run(timed, record)
            else:
                self.module.logs, self.throughput.works = name != "lightning", name == "throughput"
                for step in range(untimed + timed):
                    if step == untimed:
                        start = self._clocks()
                    yield self.batches[served % len(self.batches)]
                    served += 1
            if timed:
                cpu, wall = (b - a for a, b in zip(start, self._clocks(), strict=True))
                record.cpu.append(cpu / timed)
                record.wall.append(wall / timed)
        for name, loop in self.plain.items():
            if name.startswith("bag"):
                state = (x for s in loop.optimizers[0].state.values() for x in s.values() if isinstance(x, Tensor))
                self.records[name].state_bytes = sum(x.numel() * x.element_size() for x in state)

    def _clocks(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.process_time(), time.perf_counter()


def plan_of(dmp: Any) -> dict[str, tuple[str, str]]:
    tables = (table for module in dmp.plan.plan.values() for table in module.items())
    return {name: (p.sharding_type, p.compute_kernel) for name, p in tables}


def fused_bytes(optimizer: Any) -> int:
    state = (shard for tensor in fused_state(optimizer).values() for shard in local_shards(tensor).values())
    return sum(x.numel() * x.element_size() for x in state)


def take_turns(connection: Connection, *arguments: Any) -> None:
    """Body of a process: run all loops, send what they measured.

    Args:
        connection: to send it over; arguments: of :class:`Turns`.
    """
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    turns = Turns(*arguments)
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if turns.device.type == "cuda" else "cpu",
            devices=1,
            strategy=TorchRecStrategy(sharding=SHARDING),
            max_epochs=1,
            logger=CSVLogger(folder, flush_logs_every_n_steps=20),
            log_every_n_steps=20,
            callbacks=[turns, turns.throughput],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        trainer.fit(turns.module, turns)
    connection.send(turns.records)
