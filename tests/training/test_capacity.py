"""Plans for machines that are only described: bytes in closed form, TorchRec's own estimates, and FBGEMM's tensors."""

from __future__ import annotations

import json
import math
import random
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
    construct_split_state,
)
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import Storage
from training_runs import ROOT, run, start

from lightning_budget.errors import InputError
from lightning_budget.models.user_effects import SUMS
from lightning_budget.models.user_history import UserHistory
from lightning_budget.plots import bytes_per_rank, new_figure
from lightning_budget.training.capacity import Job, Machine, Table, plan, row_wise_bytes
from lightning_budget.training.capacity.description import GIB, size
from lightning_budget.training.capacity.planner import DENSE_COPIES, MARGIN, free
from lightning_budget.training.capacity.render import SWEEP_HEADER, markdown, sweep_row
from lightning_budget.training.capacity.storage import STATE, FusedStorageEstimator, state_bytes
from lightning_budget.training.optimizers import EMBEDDING_OPTIMIZERS, step_in_backward
from lightning_budget.training.sharding import sharders

ONE_NODE = Machine(8)


def users(rows: int, dim: int = 64, **options: Any) -> Job:
    return Job([Table("user_id", rows, dim)], **options)


@pytest.mark.parametrize("seed", range(3))
def test_row_wise_shards_hold_their_rows_and_state(seed: int) -> None:
    draw = random.Random(seed)
    ranks, dim = draw.choice([2, 4, 8]), 4 * draw.randint(1, 40)
    rows = 1_000_000 * draw.randint(50, 90) + draw.randint(1, ranks - 1)
    result = plan(Machine(ranks), users(rows, dim, sharding=["row_wise"]))
    (table,) = result.tables
    block = math.ceil(rows / ranks)
    assert (table.sharding, table.kernel) == ("row_wise", "fused")
    assert [s.rows for s in table.shards] == [block] * (ranks - 1) + [rows - (ranks - 1) * block]
    assert [s.first_row for s in table.shards] == [q * block for q in range(ranks)]
    assert [s.rank for s in table.shards] == list(range(ranks))
    for shard in table.shards:
        assert shard.weights == Storage(4 * dim * shard.rows, 0)
        assert shard.state == Storage(4 * shard.rows, 0)
        assert shard.cache == Storage(0, 0)
        # Ids in and sums of every bag out, as TorchRec counts them.
        local_batch = result.job.batch_size // ranks
        assert shard.buffers == Storage(8 * local_batch + 4 * dim * local_batch * ranks, 0)
    # The first shard is the fullest in every part.
    parts = result.memory()
    total = parts.pop("total")
    assert total == Storage(sum(part.hbm for part in parts.values()), 0)
    assert result.used()[0].hbm == total.hbm - result.dense - result.inputs - result.margin


def test_a_table_too_large_for_devices_is_cached_and_its_state_stays_there() -> None:
    rows, dim, ratio = 3_000_000_000, 64, 0.1
    result = plan(ONE_NODE, users(rows, dim, cache_load_factor=ratio))
    (table,) = result.tables
    assert (table.sharding, table.kernel) == ("row_wise", "fused_uvm_caching")
    for shard in table.shards:
        n = rows // 8
        assert (shard.rows, shard.weights, shard.state) == (n, Storage(0, 4 * dim * n), Storage(4 * n, 0))
        # Cached rows, 4 bytes for every row to find them, 16 for every slot.
        assert shard.cache.hbm == pytest.approx(n * (ratio * 4 * dim + 4 + 16 * ratio), rel=1e-6)
        assert shard.cache.ddr == 0
    moved = result.traffic.host
    assert moved == pytest.approx([65536 / 8 * 4 * dim] * 8)


def test_every_optimizer_of_training_is_counted() -> None:
    assert STATE.keys() == EMBEDDING_OPTIMIZERS.keys()


def stock(machine: Machine, job: Job) -> dict[tuple[str, str], list[Storage]]:
    """What TorchRec counts for tables tagged as training tags them, by (sharding, kernel)."""
    module, constraints, topology = job.module(), job.constraints(), machine.topology()
    step_in_backward(module, 0.1, job.optimizer)
    options = EmbeddingEnumerator(
        topology, job.batch_size // machine.ranks, constraints, EmbeddingStorageEstimator(topology, constraints)
    ).enumerate(module, sharders())
    return {(o.sharding_type, o.compute_kernel): [s.storage or Storage(0, 0) for s in o.shards] for o in options}


def ours(machine: Machine, job: Job) -> dict[tuple[str, str], list[Storage]]:
    constraints, topology = job.constraints(), machine.topology()
    options = EmbeddingEnumerator(
        topology,
        job.batch_size // machine.ranks,
        constraints,
        FusedStorageEstimator(topology, constraints, job.optimizer),
    ).enumerate(job.module(), sharders())
    return {(o.sharding_type, o.compute_kernel): [s.storage or Storage(0, 0) for s in o.shards] for o in options}


@pytest.mark.parametrize(
    ("optimizer", "device"),
    [
        (o, d)
        for o in ("rowwise_adagrad", "adagrad", "adam", "sgd")
        for d in ("cuda", "cpu")
        if (o, d) != ("adam", "cpu")
    ],
)
def test_fp32_tables_on_the_device_are_counted_as_torchrec_counts_them(optimizer: str, device: str) -> None:
    machine, job = Machine(4, device=device), users(1_000_003, 48, optimizer=optimizer, kernels=["fused"])
    assert ours(machine, job) == stock(machine, job)
    assert {kind for kind, _ in ours(machine, job)} == {"row_wise", "table_wise"}


@pytest.mark.parametrize(
    ("optimizer", "factor"), [("rowwise_adagrad", 1 / 48), ("adagrad", 1), ("adam", 2), ("sgd", 0)]
)
def test_state_is_so_many_times_the_table(optimizer: str, factor: float) -> None:
    state = state_bytes(optimizer, 1000, 48, "fused", "cuda")
    assert state == Storage(round(factor * 4 * 1000 * 48), 0)


@pytest.mark.parametrize(
    ("optimizer", "kind"),
    [("rowwise_adagrad", EmbOptimType.EXACT_ROWWISE_ADAGRAD), ("adagrad", EmbOptimType.EXACT_ADAGRAD)],
)
@pytest.mark.parametrize("precision", [SparseType.FP32, SparseType.FP16])
def test_fbgemm_keeps_so_much_state(optimizer: str, kind: EmbOptimType, precision: SparseType) -> None:
    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(100, 16, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=kind,
        weights_precision=precision,
        device=torch.device("cpu"),
    )
    states = [tensor for group in table.split_optimizer_states() for tensor in group]
    assert sum(s.numel() * s.element_size() for s in states) == state_bytes(optimizer, 100, 16, "fused", "cpu").ddr


@pytest.mark.parametrize(("optimizer", "rowwise"), [("rowwise_adagrad", True), ("adagrad", False)])
def test_fbgemm_puts_the_state_of_host_tables_there(optimizer: str, rowwise: bool) -> None:
    spec = (100, 16, EmbeddingLocation.MANAGED_CACHING, ComputeDevice.CUDA)
    split = construct_split_state([spec], rowwise=rowwise, cacheable=False)
    expected = state_bytes(optimizer, 100, 16, "fused_uvm_caching", "cuda")
    assert (4 * split.dev_size, 4 * split.uvm_size) == (expected.hbm, expected.ddr)


def test_fp16_halves_rows_and_not_state_or_outputs() -> None:
    (wide,) = plan(ONE_NODE, users(10**9)).tables
    (narrow,) = plan(ONE_NODE, users(10**9, precision="fp16")).tables
    for a, b in zip(wide.shards, narrow.shards, strict=True):
        assert 2 * b.weights.hbm == a.weights.hbm
        assert (b.state, b.buffers) == (a.state, a.buffers)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_every_rank_has_the_whole_history_of_users(device: str) -> None:
    machine, job = Machine(4, device=device), users(10**6, kernels=["fused"])
    without, kept = plan(machine, job), plan(machine, replace(job, user_history=True))
    history = UserHistory(10**6, "user_id")
    history.observe(torch.ones(1, dtype=torch.int64), torch.ones(1), torch.zeros(1, SUMS), epoch=0)
    assert history.running is not None
    assert history.sums is not None
    held = [history.counts, history.effects, history.running, history.sums]
    assert kept.history == sum(x.nbytes for x in held)
    assert without.history == 0
    a, b = (p.memory()["total"] for p in (without, kept))
    assert (b.hbm - a.hbm, b.ddr - a.ddr) == ((kept.history, 0) if device == "cuda" else (0, kept.history))
    with pytest.raises(InputError, match="user_history=true without a table 'user_id'"):
        Job([Table("city", 100, 16)], user_history=True)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_reservations_are_torchrecs(device: str) -> None:
    machine = Machine(4, device=device)
    job = Job([Table("a", 1000, 16, 1.3), Table("b", 1000, 16, 7)], batch_size=4 * 999, dense_parameters=123_457)
    with pytest.warns(FutureWarning):
        reservation = HeuristicalStorageReservation(MARGIN, dense_tensor_estimate=DENSE_COPIES * 4 * 123_457)
    reservation.reserve(machine.topology(), 999, job.module(), sharders(), job.constraints())
    left = reservation.last_reserved_topology
    assert left is not None
    assert replace(left.devices[0].storage, ssd=0) == free(machine, job)


def test_no_plan_says_what_is_missing_and_what_fits() -> None:
    job = Job([Table("user_id", 10**10, 64), Table("city", 10**5, 64)], kernels=["fused"])
    with pytest.raises(InputError) as caught:
        plan(ONE_NODE, job)
    text = str(caught.value)
    need = 10**10 / 8 * 260
    assert "\n" not in text
    assert "no plan for 8 ranks: evenly spread" in text
    assert f"user_id (10,000,000,000 × 64 fp32) {size(need)}" in text
    assert "city (100,000 × 64 fp32)" in text
    assert "80.00 GiB HBM" in text
    assert "250.0 GiB of host memory per rank, kernels fused;" in text
    # 67.98 GiB are free: 260-byte rows need 64 ranks; at 8 ranks, dim 8 takes 36 bytes and dim 16 takes 68.
    assert text.endswith("fix: one of ranks=64, embedding_dim=8")


@pytest.mark.parametrize(
    ("changes", "rows", "fix"),
    [({"kernels": ["fused"]}, 3 * 10**9, "kernels=[fused,fused_uvm_caching]"), ({}, 10**10, "precision=fp16")],
)
def test_what_the_fix_names_does_fit(changes: dict[str, Any], rows: int, fix: str) -> None:
    job = users(rows, **changes)
    with pytest.raises(InputError) as caught:
        plan(ONE_NODE, job)
    assert fix in str(caught.value)
    name, value = fix.split("=")
    larger = replace(job, **{name: value.strip("[]").split(",") if "[" in value else value})
    assert plan(ONE_NODE, larger).memory()["total"].ddr > 0


def test_reservations_beyond_the_memory_are_refused_too() -> None:
    with pytest.raises(InputError, match=r"no plan for 8 ranks.*allowed: -"):
        plan(replace(ONE_NODE, hbm=GIB), users(1000, dense_parameters=10**9, kernels=["fused"]))


@pytest.mark.parametrize("ranks", [8, 64])
def test_ten_billion_users_take_seconds_and_no_memory(ranks: int) -> None:
    plan(Machine(2), users(1000))
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        plan(Machine(ranks), users(10**10))
    except InputError:
        assert ranks == 8
    assert time.process_time() - begin < 20
    # In KiB; a single table would be 2,500 million.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Machine(12), "ranks=12 with ranks_per_node=8; allowed: whole nodes; fix: ranks=16"),
        (lambda: Machine(8, hbm=0), "hbm=0; allowed: above 0"),
        (lambda: Machine(8, device="tpu"), "device='tpu'; allowed: cuda, cpu"),
        (lambda: Table("a", 0, 16), "table 'a': 0 rows; allowed: at least 1"),
        (lambda: Table("a", 9, 30), "table 'a': dim 30; allowed: multiples of 4; fix: dim 32"),
        (lambda: Table("a", 9, 16, -1), "table 'a': -1 ids"),
        (lambda: Job([]), "no table"),
        (lambda: Job([Table("a", 9, 4)] * 2), r"two tables named \['a'\]"),
        (lambda: users(9, optimizer="lamb"), "optimizer='lamb'; allowed: rowwise_adagrad, adagrad"),
        (lambda: users(9, precision="int8"), "precision='int8'; allowed: fp32, fp16"),
        (lambda: users(9, kernels=["dense"]), r"kernels=\['dense'\]; allowed: one or more of fused, fused_uvm"),
        (lambda: users(9, sharding=[]), r"sharding=\[\]; allowed: one or more of row_wise, table_wise"),
        (lambda: users(9, cache_load_factor=1), "cache_load_factor=1; allowed: between 0 and 1"),
        (lambda: plan(ONE_NODE, users(9, batch_size=100)), "batch_size=100 over 8 ranks.*fix: batch_size=96"),
        (lambda: plan(Machine(2, device="cpu"), users(9, optimizer="adam")), "optimizer='adam' with device='cpu'"),
        (lambda: plan(Machine(2, device="cpu"), users(9, kernels=["fused_uvm"])), r"kernels=.* with device='cpu'"),
    ],
)
def test_what_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_picture_shows_bytes_and_limits() -> None:
    ax = new_figure(6, 4).add_subplot()
    needs = {
        n: [sum(s.hbm for s in row_wise_bytes(Machine(r), users(n)).values()) for r in (1, 8)] for n in (10**6, 10**8)
    }
    assert bytes_per_rank(ax, [1, 8], {str(n): need for n, need in needs.items()}, {"HBM": 80 * GIB}) is ax
    ax.figure.canvas.draw()
    lines = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert lines[str(10**8)] == needs[10**8]
    assert [80 * GIB] * 2 in lines.values()
    assert "HBM" in [t.get_text() for t in ax.texts]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert "1 GiB" in [t.get_text() for t in ax.get_yticklabels()]


@pytest.mark.parametrize(("n", "dim", "ranks"), [(10**9, 64, 8), (10**10, 128, 64), (10**10, 16, 256)])
def test_the_page_shows_what_the_planner_says(n: int, dim: int, ranks: int) -> None:
    line = markdown(SWEEP_HEADER, [sweep_row(plan(Machine(ranks), users(n, dim)))]).splitlines()[-1]
    assert line in (ROOT / "docs" / "scale.md").read_text().splitlines()


def test_command_prints_and_writes_the_plan(tmp_path: Path) -> None:
    text = run(
        "plan.py",
        "users=1e9",
        "tables={viewed:{rows:1e7,ids:20},city:1e4}",
        "ranks=8",
        "output=made/plan.json",
        "picture=made/scale.png",
        cwd=tmp_path,
    )
    saved = json.loads((tmp_path / "made" / "plan.json").read_text())
    assert [(t["table"]["name"], t["table"]["rows"]) for t in saved["tables"]] == [
        ("user_id", 10**9),
        ("viewed", 10**7),
        ("city", 10**4),
    ]
    assert saved["tables"][1]["table"]["ids"] == 20
    for table in saved["tables"]:
        assert sum(s["rows"] for s in table["shards"]) == table["table"]["rows"]
        assert table["table"]["name"] in text
    total = saved["memory_of_fullest_rank"]["total"]["hbm"]
    assert 30 * GIB < total < 80 * GIB
    assert size(total) in text
    assert "nothing was run on such a machine" in text
    assert {p.name for p in (tmp_path / "made").iterdir()} == {"plan.json", "scale.png"}


def test_command_refuses_in_one_line(tmp_path: Path) -> None:
    with start("plan.py", "tables={city:{ids:3}}", "output=plan.json", cwd=tmp_path) as process:
        text, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert (
        text == "error: tables.city with keys ['ids']; allowed: rows, and ids and dim if need be; fix: name its rows\n"
    )
    assert list(tmp_path.iterdir()) == []
