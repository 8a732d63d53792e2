"""The formulas of traffic against what TorchRec hands to its collectives in one step of three processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
from torchrec.distributed.types import ShardingPlan
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_budget.training.capacity import Job, Table
from lightning_budget.training.capacity.traffic import Flow, all_reduce, host_traffic, table_traffic
from lightning_budget.training.optimizers import step_in_backward
from lightning_budget.training.sharding import sharders

RANKS, BAGS = 3, 7
TABLE = Table("t", rows=40, dim=8, ids=40 / BAGS)
BLOCKS = {"row_wise": [14, 14, 12], "table_wise": [0, 40, 0]}


class Collectives(TorchDispatchMode):
    """Bytes that this rank sends to others and receives from them, a pair per collective, in order."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.seen = rank, []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(op)
        if "alltoall_base_" in name:
            output, source, _, received, sent = args[:5]
            pairs = ((source, sent), (output, received))
            self.seen.append(tuple(self._others(t, splits) for t, splits in pairs))
        elif "_reduce_scatter_base_" in name or "_allgather_base_" in name:
            # A rank keeps its own part of the larger tensor; the others' go out, or come in, once each.
            moved = max(self._bytes(args[0]), self._bytes(args[1])) * (RANKS - 1) // RANKS
            self.seen.append((moved, moved))
        return op(*args, **(kwargs or {}))

    @staticmethod
    def _bytes(tensor: torch.Tensor) -> int:
        return tensor.numel() * tensor.element_size()

    def _others(self, tensor: torch.Tensor, splits: list[int]) -> int:
        splits = splits or [len(tensor) // RANKS] * RANKS
        row = self._bytes(tensor) // max(1, len(tensor))
        return row * (sum(splits) - splits[self.rank])


def jagged(rank: int) -> KeyedJaggedTensor:
    """Every id of the table once, in bags of any size, empty ones too."""
    draw = torch.Generator().manual_seed(rank)
    ends = torch.randint(0, TABLE.rows + 1, (BAGS - 1,), generator=draw).sort().values
    bounds = torch.cat([torch.tensor([0]), ends, torch.tensor([TABLE.rows])])
    return KeyedJaggedTensor(["t"], torch.randperm(TABLE.rows, generator=draw), lengths=bounds.diff())


class Lookup(nn.Module):
    def __init__(self, tables: nn.Module) -> None:
        super().__init__()
        self.tables = tables

    def forward(self, sparse: KeyedJaggedTensor) -> torch.Tensor:
        return self.tables(sparse).values()


def step(rank: int, folder: str) -> None:
    """One process: a step of each sharding, its collectives saved."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS))
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    seen = {}
    for kind, layout in (("row_wise", row_wise()), ("table_wise", table_wise(rank=1))):
        tables = Job([TABLE]).module()["tables"]  # type: ignore[index]
        step_in_backward(tables, 0.1)
        planned = construct_module_sharding_plan(
            tables, {"t": layout}, sharder=sharders()[0], world_size=RANKS, local_size=RANKS, device_type="cpu"
        )
        model = DistributedModelParallel(
            Lookup(tables),
            device=torch.device("cpu"),
            plan=ShardingPlan({"tables": planned}),
            sharders=sharders(),
            init_data_parallel=False,
        )
        with Collectives(rank) as collectives:
            model(jagged(rank)).sum().backward()
        seen[kind] = collectives.seen
    torch.save(seen, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[tuple[int, int]]]]:
    """By rank and sharding, the (sent, received) of each collective."""
    folder: Path = tmp_path_factory.mktemp("step")
    processes = mp.start_processes(step, args=(str(folder),), nprocs=RANKS, join=False, start_method="forkserver")
    assert processes is not None
    deadline = time.monotonic() + 150
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "three processes did not finish a step"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("kind", ["row_wise", "table_wise"])
def test_a_step_moves_what_the_formulas_say(counted: list[dict[str, list[tuple[int, int]]]], kind: str) -> None:
    flows = table_traffic(TABLE, BLOCKS[kind], BAGS)
    for rank in range(RANKS):
        # First the sizes of messages, then lengths and ids, pooled embeddings, gradients.
        sizes, lengths, values, forward, backward = counted[rank][kind]
        ids = (lengths[0] + values[0], lengths[1] + values[1])
        assert sizes == (24 * (RANKS - 1), 24 * (RANKS - 1))
        expected = [(flow.sent[rank], flow.received[rank]) for flow in flows]
        assert [ids, forward, backward] == [pytest.approx(pair) for pair in expected]


@pytest.mark.parametrize("kind", ["row_wise", "table_wise"])
def test_what_is_sent_is_received(kind: str) -> None:
    for flow in table_traffic(TABLE, BLOCKS[kind], BAGS):
        assert sum(flow.sent) == pytest.approx(sum(flow.received))
        assert sum(flow.sent) > 0


def test_one_rank_exchanges_nothing() -> None:
    flows = [*table_traffic(TABLE, [40], BAGS), all_reduce(1000, 1)]
    assert [flow.busiest for flow in flows] == [0, 0, 0, 0]


def test_all_reduce_of_a_ring() -> None:
    # Reduce-scatter and all-gather of 4 blocks of 25 numbers: 3 blocks out each time.
    assert all_reduce(100, 4) == Flow((2 * 3 * 25 * 4,) * 4, (2 * 3 * 25 * 4,) * 4)


def test_host_rows_are_the_ids_that_fall_on_a_rank() -> None:
    owner = torch.bucketize(torch.cat([jagged(r).values() for r in range(RANKS)]), torch.tensor([14, 28]), right=True)
    counts = torch.bincount(owner, minlength=RANKS)
    assert host_traffic(TABLE, BLOCKS["row_wise"], BAGS * RANKS, 32) == pytest.approx((32 * counts).tolist())
