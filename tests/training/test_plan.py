"""Sharding plans: what they may be, what is refused, and that a file gives the same plan again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.types import ShardingPlan

from lightning_budget.errors import InputError
from lightning_budget.models.registry import build_model
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.optimizers import step_in_backward
from lightning_budget.training.plan import (
    ShardingConfig,
    TableSharding,
    check_states,
    describe_plan,
    load_plan,
    make_plan,
    plan_lines,
    save_plan,
)
from lightning_budget.training.sharding import embedding_tables

CPU = torch.device("cpu")
SCHEMA = DataSchema(
    treatments=("control", "coupon"), sparse=(SparseFeature("user_id", 1001), SparseFeature("city", 11))
)
STATISTICS = DataStatistics((), (), (0.5, 0.5), (1.0, 2.0), (0.0, 1.0), 1.0, 1.0)


def described(optimizer: str = "rowwise_adagrad", dim: int = 8, schema: DataSchema = SCHEMA) -> torch.nn.Module:
    net = build_model({"name": "tarnet", "embedding_dim": dim}, schema, STATISTICS, "meta")
    step_in_backward(net.sparse_arch, 0.1, optimizer)  # type: ignore[arg-type]
    return net


def plan(config: ShardingConfig, module: torch.nn.Module, world_size: int = 2) -> ShardingPlan:
    return make_plan(module, config, CPU, world_size, world_size)


def layout(config: ShardingConfig, **more: Any) -> dict[str, dict[str, Any]]:
    module = described(**more)
    return {t["table"]: t for t in describe_plan(plan(config, module), list(embedding_tables(module)))}


def test_each_table_as_it_is_told() -> None:
    tables = {"city": TableSharding(["table_wise"])}
    got = layout(ShardingConfig(TableSharding(["row_wise"]), tables))
    assert got["user_id"]["sharding"] == "row_wise"
    assert [s["sizes"] for s in got["user_id"]["shards"]] == [[501, 8], [500, 8]]
    assert got["city"]["sharding"] == "table_wise"
    assert [s["sizes"] for s in got["city"]["shards"]] == [[11, 8]]
    assert {t["kernel"] for t in got.values()} == {"fused"}


def test_columns() -> None:
    got = layout(ShardingConfig(TableSharding(["column_wise"], min_columns=4)), optimizer="adagrad")
    assert [s["sizes"] for s in got["user_id"]["shards"]] == [[1001, 4], [1001, 4]]


def test_never_data_parallel_left_alone() -> None:
    # TorchRec's own choice for small tables, where in-backward optimizers are silently ignored.
    assert {t["sharding"] for t in layout(ShardingConfig()).values()} <= {"row_wise", "table_wise"}


def test_one_process_cuts_nothing() -> None:
    module = described()
    tables = list(embedding_tables(module))
    for types, expected in ((["row_wise", "table_wise"], "table_wise"), (["row_wise"], "row_wise")):
        made = describe_plan(plan(ShardingConfig(TableSharding(types)), module, world_size=1), tables)
        assert {t["sharding"] for t in made} == {expected}


def test_lines_for_people() -> None:
    module = described()
    tables = list(embedding_tables(module))
    lines = plan_lines(describe_plan(plan(ShardingConfig(TableSharding(["row_wise"])), module), tables))
    assert lines == [
        "user_id: 1,001 × 8, row_wise on 2 ranks, fused",
        "city: 11 × 8, row_wise on 2 ranks, fused",
    ]


def test_a_file_gives_the_plan_again(tmp_path: Path) -> None:
    module = described()
    tables = list(embedding_tables(module))
    made = describe_plan(plan(ShardingConfig(), module), tables)
    save_plan(tmp_path / "plan.json", made, CPU, 2)
    assert describe_plan(load_plan(tmp_path / "plan.json", module, CPU, 2), tables) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"world_size": 4}, "is for 4 processes on cpu; allowed: 2 on cpu"),
        ({"device": "cuda"}, "is for 2 processes on cuda"),
        ({"tables": []}, r"table '(user_id|city)' is absent there and"),
        ({"tables": 3}, r"cannot be read \(TypeError\)"),
    ],
)
def test_refuses_the_plan_of_something_else(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    module, path = described(), tmp_path / "plan.json"
    save_plan(path, describe_plan(plan(ShardingConfig(), module), list(embedding_tables(module))), CPU, 2)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InputError, match=message):
        load_plan(path, module, CPU, 2)
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        load_plan(path, module, CPU, 2)


@pytest.mark.parametrize("kind", ["column_wise", "table_column_wise"])
def test_refuses_to_change_what_row_wise_adagrad_computes(kind: str) -> None:
    module = described()
    made = plan(ShardingConfig(TableSharding([kind], min_columns=4)), module)
    with pytest.raises(InputError, match=f"is {kind} with an optimizer that keeps one number per row"):
        check_states(made, module)
    for optimizer in ("adagrad", "sgd"):
        module = described(optimizer)
        check_states(plan(ShardingConfig(TableSharding([kind], min_columns=4)), module), module)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TableSharding(["data_parallel"]), r"sharding.types=\['data_parallel'\]; allowed: row_wise"),
        (lambda: TableSharding([]), r"sharding.types=\[\]"),
        (lambda: TableSharding(kernels=["dense"]), r"sharding.kernels=\['dense'\]; allowed: fused"),
        (lambda: ShardingConfig(hbm_gib=0.0), "sharding.hbm_gib=0; allowed: above 0"),
        (
            lambda: plan(ShardingConfig(tables={"user": TableSharding()}), described()),
            "sharding.tables.user names no table; allowed: user_id, city; fix: did you mean 'user_id'",
        ),
    ],
)
def test_refusals(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_memory_limits_bind() -> None:
    schema = DataSchema(treatments=("a", "b"), sparse=(SparseFeature("user_id", 50_000_000),))
    big = described(dim=64, schema=schema)  # 12 GiB, described and not allocated
    plan(ShardingConfig(ddr_gib=16.0), big)
    with pytest.raises(Exception, match=r"(?i)storage|plan|memory"):
        plan(ShardingConfig(ddr_gib=4.0), big)
