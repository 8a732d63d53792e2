"""A policy's file: whole, plain, and read where nothing but torch and this library's plain rooms is there."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import torch
from random_trials import random_schema, random_statistics, random_table
from serving_cases import batch, case, run_without, trained, write_checkpoint

from lightning_budget.allocation import (
    ArrivalCurve,
    Budget,
    CheckpointSource,
    DataSource,
    PacedPolicy,
    PolicyOrigin,
    PricePolicy,
    SlopeSketch,
)
from lightning_budget.data.users import read_users, write_users
from lightning_budget.errors import InputError
from lightning_budget.serving import ServingModel, load, load_policy, save, save_policy
from lightning_budget.training.export import load_model
from lightning_budget.training.serving_export import serving_inputs
from scripts import allocate, export

FOREIGN = "torchrec fbgemm_gpu lightning pytorch_lightning hydra omegaconf torchmetrics pyarrow wandb rich tensordict"
ORIGIN = PolicyOrigin(
    Budget(1000.0, False, 4000), DataSource("users.parquet", 4000, "ab12"), CheckpointSource("best.ckpt", "cd34")
)
POLICY = PricePolicy(0.1 + 0.2, ("control", "five %", "zehn €"), ORIGIN)


def pace() -> PacedPolicy:
    g = torch.Generator().manual_seed(0)
    value, cost = torch.rand(500, 3, generator=g), torch.rand(500, 3, generator=g).cumsum(1)
    policy = PacedPolicy(SlopeSketch().add(value, cost), 700.0, 1000, ArrivalCurve((0.0, 24.0), (0.0, 1.0)))
    policy(value[:200], cost[:200])
    policy.report(150.0, time=5.0)
    policy.choose([0.0, 1.0, 2.0], [0.0, 1.0, 1.5])
    return policy


@pytest.mark.parametrize("policy", [POLICY, PricePolicy(math.inf)])
def test_a_price_policy_comes_back(tmp_path: Path, policy: PricePolicy) -> None:
    save_policy(policy, tmp_path / "policy.json")
    assert load_policy(tmp_path / "policy.json") == policy
    assert [p.name for p in tmp_path.iterdir()] == ["policy.json"]

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    json.loads((tmp_path / "policy.json").read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.mark.parametrize("gone", [False, True])
def test_a_paced_policy_comes_back_where_it_was(tmp_path: Path, gone: bool) -> None:
    policy = pace()
    if gone:
        policy.report(701.0, 0.9)
    save_policy(policy, tmp_path / "policy.json")
    back = load_policy(tmp_path / "policy.json")
    assert isinstance(back, PacedPolicy)
    assert back.to_dict() == policy.to_dict()
    for p in (policy, back):
        p.choose([0.0, 1.0, 2.0], [0.0, 1.0, 1.5])
        p.report(702.0, time=23.0)
    assert back.state == policy.state
    assert back.describe() == policy.describe()


SERVE = """
from lightning_budget.serving import load_policy
price, paced = (load_policy(path) for path in sys.argv[1:])
print(price.choose([0.0, 1.0, 1.0], [0.0, 1.0, 3.0]), paced.choose([0.0, 1.0, 2.0], [0.0, 1.0, 1.5]))
print(price)
"""


def test_with_torch_alone(tmp_path: Path) -> None:
    files = [tmp_path / "price.json", tmp_path / "paced.json"]
    for policy, path in zip((POLICY, pace()), files, strict=True):
        save_policy(policy, path)
    chosen = pace().choose([0.0, 1.0, 2.0], [0.0, 1.0, 1.5])
    said = run_without(FOREIGN, SERVE, *map(str, files), cwd=tmp_path)
    assert said.splitlines() == [f"1 {chosen}", *str(POLICY).splitlines()]


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_origin_travels_with_a_model(tmp_path: Path, kind: str) -> None:
    plain = case(multiplier=0.7)[1]
    with torch.device("meta"):
        model = ServingModel(plain.schema, plain.statistics, plain.config, multiplier=0.7, origin=ORIGIN)
    model.load_state_dict(plain.state_dict(), assign=True)
    save(model if kind == "float32" else model.int8(), tmp_path / "model.pt")
    policy = load(tmp_path / "model.pt").policy
    assert policy is not None
    assert policy == PricePolicy(0.7, ("arm_0", "arm_1", "arm_2"), ORIGIN)
    out = model(*serving_inputs(batch(50)))
    assert policy(out.value, out.cost).tolist() == out.treatment.tolist()


def test_a_model_file_of_before_has_no_origin(tmp_path: Path) -> None:
    save(case(multiplier=0.7)[1], tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    del content["origin"]
    torch.save(content, tmp_path / "model.pt")
    policy = load(tmp_path / "model.pt").policy
    assert policy is not None
    assert (policy.multiplier, policy.origin) == (0.7, None)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    save_policy(pace(), path)
    content = json.loads(path.read_text())

    def refused(text: str | bytes, match: str) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(InputError, match=match) as caught:
            load_policy(path)
        assert "\n" not in str(caught.value)

    refused(json.dumps(content)[:-200], "is no JSON")
    refused("", "is no JSON")
    refused(b"\x80\x02\xff", "is no JSON")
    refused("[1, 2]", "is no policy")
    refused('{"multiplier": 1.0}', "is no policy")
    refused(json.dumps({**content, "version": 2}), "has version 2 .*; allowed: version 1")
    refused(json.dumps({**content, "kind": "other"}), "of kind 'other'; allowed: .*price or paced")
    refused(json.dumps({**content, "kind": "price"}), "lacks a part")
    refused(json.dumps({**content, "sketch": {**content["sketch"], "layout": [9, 9]}}), "laid out")
    refused(json.dumps({**content, "sketch": {**content["sketch"], "bins": [10**9]}}), "lacks a part")
    refused(json.dumps({**content, "horizon": -1}), "horizon=-1")
    path.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_policy(path)
    with pytest.raises(InputError, match="cannot be written"):
        save_policy(POLICY, tmp_path / "nowhere" / "policy.json")


def test_of_an_allocation_by_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, statistics = random_schema(), random_statistics()
    ckpt, given, output = tmp_path / "best.ckpt", tmp_path / "users.parquet", tmp_path / "out.parquet"
    write_checkpoint(trained(schema, statistics), schema, statistics, ckpt)
    write_users(random_table(200), schema, given)

    def allocated(*overrides: str) -> PricePolicy:
        arguments = [
            f"ckpt={ckpt}",
            f"input={given}",
            f"output={output}",
            "accelerator=cpu",
            "check_duplicates=false",
            *overrides,
        ]
        monkeypatch.setattr(sys, "argv", ["allocate.py", *arguments])
        allocate.main()
        policy = load_policy(tmp_path / "out.policy.json")
        assert isinstance(policy, PricePolicy)
        return policy

    users = read_users(given, schema)[0].batch(torch.arange(200))
    with torch.no_grad():
        prediction = load_model(ckpt)(users.dense, users.sparse)
    least = float(prediction.cost.double().amin(1).sum())
    free = float(prediction.cost.double().gather(1, prediction.value.argmax(1)[:, None]).sum())
    budget = max(least, 0.0) + 0.3 * (free - least)
    policy = allocated(f"budget={budget}")
    assert policy.treatments == schema.treatments
    assert policy.origin is not None
    assert policy.origin.checkpoint == CheckpointSource.of(ckpt)
    assert policy.origin.data.name == str(given)
    chosen = torch.tensor(pyarrow.parquet.read_table(output)["treatment"].to_pylist())
    served = policy(prediction.value, prediction.cost)
    # The fill gives a few users more than the policy would.
    assert 0 <= int((served != chosen).sum()) < 10
    assert len(served.unique()) > 1
    monkeypatch.setattr(
        sys, "argv", ["export.py", f"ckpt={ckpt}", f"policy={tmp_path / 'out.policy.json'}", "formats=[plain]"]
    )
    export.main()
    assert load(tmp_path / "export" / "model.pt").policy == policy
