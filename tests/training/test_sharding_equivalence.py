"""However tables lie over however many ranks, training computes the same numbers, and can change ranks on the way."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_runs import assert_same_weights, finish, losses, run_jobs, start_ranks

from lightning_budget.losses.choice import PAIRS

WORLDS = (1, 2, 4)
STEPS, SAVED = 16, 11
# Column-wise only where the optimizer keeps no number per row.
LAYOUTS = {
    "row_wise": "rowwise_adagrad",
    "table_wise": "rowwise_adagrad",
    "table_row_wise": "rowwise_adagrad",
    "column_wise": "adagrad",
    "row_wise-adagrad": "adagrad",
    "column_wise-sgd": "sgd",
    "row_wise-sgd": "sgd",
}
FOUR = ("row_wise", "table_wise", "table_row_wise", "column_wise")
"""On four ranks each layout once: what an optimizer keeps is cut as on two."""

FORMATS = {"full": "row_wise", "sharded": "table_wise", "sharded_async": "row_wise"}
MODEL = {"name": "tarnet", "embedding_dim": 8, "dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4}
CHOICES = ("drp", "dpm", "dr")
"""Losses that know something of the whole training split, or of one batch, before a step."""


def job(name: str, types: str, optimizer: str = "rowwise_adagrad", **more: Any) -> dict[str, Any]:
    module = {"model": MODEL, "embedding_optimizer": optimizer}
    return {"name": name, "types": [types], "module": module, **more}


def of_loss(name: str) -> dict[str, Any]:
    model = {**MODEL, "name": "direct_ranking", "pairs": PAIRS[name]} if name in PAIRS else MODEL
    return {"name": name, "types": ["row_wise"], "module": {"model": model, "loss": {"name": name}}}


def layouts(names: Iterable[str]) -> list[dict[str, Any]]:
    return [job(name, name.partition("-")[0], LAYOUTS[name]) for name in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """For each number of ranks: every layout to its end, and a checkpoint of every format inside the second epoch."""
    folders = {}
    for world in WORLDS:
        folder = folders[world] = tmp_path_factory.mktemp(f"ranks{world}")
        jobs = layouts(LAYOUTS if world < 4 else FOUR)
        jobs[0]["plan_file"] = str(folder / "plan.json")
        jobs.append(job("planned", "row_wise", plan=str(folder / "plan.json")))
        jobs += [of_loss(name) for name in CHOICES] if world < 4 else []
        jobs += [
            job(f"cut-{kind}", types, format=kind, save_at=SAVED, checkpoint=str(folder / f"{kind}.ckpt"))
            for kind, types in FORMATS.items()
        ]
        run_jobs(world, jobs, folder)
    return folders


@pytest.fixture(scope="module")
def resumed(runs: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """For each number of ranks: gone on from every checkpoint of every number of ranks, in the other layout."""
    folders = {}
    for world in WORLDS:
        folder = folders[world] = tmp_path_factory.mktemp(f"resumed{world}")
        jobs = [
            job(f"{kind}-from-{origin}", other, resume=str(runs[origin] / f"{kind}.ckpt"), format=kind)
            for origin in WORLDS
            for kind, other in zip(FORMATS, ("table_wise", "row_wise", "table_wise"), strict=True)
        ]
        run_jobs(world, jobs, folder)
    return folders


@pytest.mark.parametrize(("world", "name"), [(w, n) for w in WORLDS for n in (LAYOUTS if w < 4 else FOUR)])
def test_same_losses_tables_and_states(runs: dict[int, Path], world: int, name: str) -> None:
    # The plain loop that row-wise on one rank equals is in test_strategy_reference.
    assert_same_run(runs[world], name, runs[1])


@pytest.mark.slow
def test_every_optimizer_on_four_ranks(runs: dict[int, Path], tmp_path: Path) -> None:
    names = [name for name in LAYOUTS if name not in FOUR]
    run_jobs(4, layouts(names), tmp_path)
    for name in names:
        assert_same_run(tmp_path, name, runs[1])


def assert_same_run(folder: Path, name: str, one: Path) -> None:
    base = {"rowwise_adagrad": "row_wise", "adagrad": "row_wise-adagrad", "sgd": "row_wise-sgd"}[LAYOUTS[name]]
    expected, mine = losses(one, base), losses(folder, name)
    assert sorted(expected) == list(range(STEPS))
    assert mine == pytest.approx(expected, rel=1e-5)
    assert_same_weights(folder / f"{name}.ckpt", one / f"{base}.ckpt")


@pytest.mark.parametrize("name", CHOICES)
def test_every_loss_is_that_of_one_process(runs: dict[int, Path], name: str) -> None:
    one, two = (losses(runs[world], name) for world in (1, 2))
    assert sorted(one) == list(range(STEPS))
    assert two == pytest.approx(one, rel=1e-5)
    assert one != pytest.approx(losses(runs[1], "row_wise"), rel=1e-3)
    assert_same_weights(runs[2] / f"{name}.ckpt", runs[1] / f"{name}.ckpt")


def test_optimizers_differ(runs: dict[int, Path]) -> None:
    ends = [losses(runs[1], name)[STEPS - 1] for name in ("row_wise", "row_wise-adagrad", "row_wise-sgd")]
    assert min(abs(a - b) for i, a in enumerate(ends) for b in ends[:i]) > 1e-4


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("origin", WORLDS)
@pytest.mark.parametrize("kind", FORMATS)
def test_resumed_on_any_number_of_ranks(
    runs: dict[int, Path], resumed: dict[int, Path], kind: str, origin: int, world: int
) -> None:
    name = f"{kind}-from-{origin}"
    expected = losses(runs[1], "row_wise")
    assert losses(resumed[world], name) == pytest.approx({s: expected[s] for s in range(SAVED, STEPS)}, rel=1e-5)
    assert_same_weights(resumed[world] / f"{name}.ckpt", runs[1] / "row_wise.ckpt")


@pytest.mark.parametrize("world", WORLDS)
def test_a_plan_is_saved_and_taken_again(runs: dict[int, Path], world: int) -> None:
    plan = json.loads((runs[world] / "plan.json").read_text())
    assert plan["world_size"] == world
    assert {t["table"] for t in plan["tables"]} == {"user_id", "city", "tier", "device", "viewed"}
    for table in plan["tables"]:
        assert table["sharding"] == "row_wise"
        assert len(table["shards"]) == world
        assert sum(s["sizes"][0] for s in table["shards"]) == table["rows"]
    assert losses(runs[world], "planned") == losses(runs[world], "row_wise")


def test_every_rank_is_told_that_nothing_fits(tmp_path: Path) -> None:
    described = {**job("tight", "table_wise", ddr_gib=1e-6), "folder": str(tmp_path)}
    (tmp_path / "jobs.json").write_text(json.dumps([described]))
    processes = start_ranks(2, "rank_worker.py", str(tmp_path / "jobs.json"))
    outputs = finish(processes, timeout=60)
    assert all(p.returncode for p in processes)
    assert all("no sharding plan for 2 processes" in o for o in outputs[:1])
    assert all("Timeout" not in o for o in outputs)


def test_checkpoints_hold_versions_and_position(runs: dict[int, Path]) -> None:
    from lightning_budget.training.export import read_checkpoint

    for kind in FORMATS:
        saved = read_checkpoint(runs[2] / f"{kind}.ckpt")
        assert set(saved["versions"]) >= {"torch", "torchrec", "lightning", "lightning_budget"}
        assert saved["versions"]["torch"] == torch.__version__
        assert saved["global_step"] == SAVED
        assert {"optimizer_states", "callbacks", "loops", "lr_schedulers"} <= saved.keys()
        assert all(type(t) is torch.Tensor for t in saved["state_dict"].values())
        assert saved["hyper_parameters"]["statistics"]
