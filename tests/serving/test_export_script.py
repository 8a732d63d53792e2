"""``scripts/export.py``: from a checkpoint to checked files, or to one line and nothing at all."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_trials import random_schema, random_statistics, random_table
from serving_cases import ROOT, trained, write_checkpoint

from lightning_budget.allocation import (
    Budget,
    CheckpointSource,
    DataSource,
    PacedPolicy,
    PolicyOrigin,
    PricePolicy,
    SlopeSketch,
    policy_treatment,
)
from lightning_budget.data.users import read_users, write_users
from lightning_budget.errors import InputError
from lightning_budget.serving import ServingModel, load, load_program, save_policy
from lightning_budget.table import RCTTable
from lightning_budget.training import serving_export
from lightning_budget.training.export import load_model, load_schema
from lightning_budget.training.serving_check import Trial, random_users
from lightning_budget.training.serving_export import serving_inputs, to_serving, write_checked
from scripts import export

ALL = ["model.pt", "model.pt2", "model_int8.pt", "model_int8.pt2"]


@pytest.fixture
def ckpt(tmp_path: Path) -> Path:
    """A checkpoint in a run folder with example users."""
    schema, statistics = random_schema(), random_statistics()
    path = tmp_path / "run" / "best.ckpt"
    write_checkpoint(trained(schema, statistics), schema, statistics, path)
    write_users(random_table(200), schema, path.with_name("example_users.parquet"))
    return path


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the script in this process; what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")

    def run(*overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["export.py", *overrides])
        capfd.readouterr()
        export.main()
        return capfd.readouterr().out

    return run


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def rows_of(output: str) -> dict[str, list[str]]:
    """Cells of the printed table after the name: file, tables, |Δvalue|, over spread, |Δcost|, changed, two times."""
    found = re.findall(r"^ (training model|model\S*) +(.*?) *$", output, re.MULTILINE)
    return {name: re.split(r"  +", cells) for name, cells in found}


def test_from_a_process_of_its_own_to_the_same_treatments(ckpt: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "export.py"), f"ckpt={ckpt}", "multiplier=0.7"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = ckpt.parent / "export"
    assert names(folder) == ALL
    assert names(tmp_path) == ["run"]

    schema = load_schema(ckpt)
    users = read_users(ckpt.with_name("example_users.parquet"), schema)[0].batch(torch.arange(200))
    with torch.no_grad():
        wanted = load_model(ckpt)(users.dense, users.sparse)
    treatment = policy_treatment(wanted.value, wanted.cost, 0.7)
    plain, near = load(folder / "model.pt"), load(folder / "model_int8.pt")
    program, about = load_program(folder / "model.pt2")
    price = torch.tensor(about["multiplier"], dtype=torch.float64)
    inputs = serving_inputs(users)
    for value, cost, arm in (plain(*inputs), program(*inputs, price)):
        torch.testing.assert_close(value, wanted.value, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(cost, wanted.cost, rtol=1e-6, atol=1e-6)
        assert torch.equal(arm, treatment)
    assert plain.multiplier == near.multiplier == about["multiplier"] == 0.7
    assert plain.schema == schema

    rows = rows_of(done.stdout)
    assert list(rows) == ["training model", *ALL]
    assert {len(cells) for cells in rows.values()} == {8}
    error = float((near(*inputs).value - wanted.value).abs().max())
    spread = float(wanted.value.double().std())
    changed = float((near(*inputs).treatment != treatment).double().mean())
    for name in ALL[2:]:
        assert rows[name][1] == "420 bytes"
        assert rows[name][2:4] == [f"{error:.2g}", f"{error / spread:.2g}"]
        assert rows[name][5] == f"{changed:.3%}"
    for name in ("training model", *ALL[:2]):
        assert rows[name][1] == "1.1 kB"
        assert float(rows[name][3]) < 1e-5
        assert rows[name][5] == "0.000%"
    assert f"on 200 users of {ckpt.with_name('example_users.parquet')}" in done.stdout


def test_a_choice_of_formats_without_a_multiplier(ckpt: Path, tmp_path: Path, call: Callable[..., str]) -> None:
    # In a phase's folder: the example users lie one above.
    below = ckpt.parent / "two_stage" / "best.ckpt"
    below.parent.mkdir()
    ckpt.rename(below)
    output = call(f"ckpt={below}", "formats=[plain]", f"output={tmp_path}/new/folder")
    assert names(tmp_path / "new" / "folder") == ["model.pt"]
    assert load(tmp_path / "new" / "folder" / "model.pt").multiplier is None
    assert "on 200 users of" in output
    assert [cells[5] for cells in rows_of(output).values()] == ["–", "–"]


def test_a_policy_travels_with_its_origin(
    ckpt: Path, tmp_path: Path, call: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    source, data = CheckpointSource.of(ckpt), DataSource("users.parquet", 200, "ab12")
    policy = PricePolicy(0.7, load_schema(ckpt).treatments, PolicyOrigin(Budget(40.0, False, 200), data, source))
    save_policy(policy, tmp_path / "policy.json")
    call(f"ckpt={ckpt}", "formats=[plain]", "policy=policy.json")
    assert load(ckpt.parent / "export" / "model.pt").policy == policy
    assert policy.origin is not None

    def refused(match: str, *more: str) -> None:
        with pytest.raises(SystemExit):
            call(f"ckpt={ckpt}", "formats=[plain]", "policy=policy.json", *more)
        error = capfd.readouterr().err
        assert error.count("\n") == 1
        assert match in error

    refused("multiplier=2 and policy=policy.json; allowed: one of both", "multiplier=2")
    save_policy(replace(policy, treatments=("a", "b")), tmp_path / "policy.json")
    refused("policy=policy.json is of a, b; allowed: a price policy of arm_0, arm_1, arm_2")
    other = replace(policy.origin, checkpoint=replace(source, sha256="0" * 64))
    save_policy(replace(policy, origin=other), tmp_path / "policy.json")
    refused("sha256 000000000000…; allowed: the checkpoint to export")
    save_policy(PricePolicy(float("inf")), tmp_path / "policy.json")
    refused("has multiplier inf; allowed: a finite one")
    sketch = SlopeSketch().add(torch.rand(9, 3), torch.tensor([[0.0, 1.0, 2.0]]).expand(9, 3))
    save_policy(PacedPolicy(sketch, 10.0, 100), tmp_path / "policy.json")
    refused("is a paced policy")


def test_users_of_a_file_and_random_ones(ckpt: Path, tmp_path: Path, call: Callable[..., str]) -> None:
    write_users(random_table(30, seed=5), load_schema(ckpt), tmp_path / "others.parquet")
    good = (f"ckpt={ckpt}", "formats=[plain]")
    assert f"on 30 users of {tmp_path / 'others.parquet'}" in call(*good, "users=others.parquet")
    ckpt.with_name("example_users.parquet").unlink()
    assert "on 1,024 random users" in call(*good)


def test_an_earlier_export_is_replaced(ckpt: Path, call: Callable[..., str]) -> None:
    call(f"ckpt={ckpt}", "formats=[plain]", "multiplier=1")
    (ckpt.parent / "export" / "notes.txt").write_text("kept")
    call(f"ckpt={ckpt}", "formats=[plain]", "multiplier=2")
    assert load(ckpt.parent / "export" / "model.pt").multiplier == 2
    assert names(ckpt.parent / "export") == ["model.pt", "notes.txt"]


def test_random_users_reach_every_row() -> None:
    schema = random_schema()
    users = random_users(schema, random_statistics())
    batch = users.batch(torch.arange(len(users)))
    assert batch.sparse is not None
    for feature in schema.sparse:
        assert batch.sparse[feature.name].values().unique().tolist() == list(range(feature.num_embeddings))
    lengths = batch.sparse["viewed"].lengths()
    assert (int(lengths.min()), int(lengths.max())) == (0, 5)
    torch.testing.assert_close(batch.dense.mean(0), torch.full((3,), 5.0), rtol=0, atol=0.3)


Broken = Callable[[ServingModel], None]


def another_cost(model: ServingModel) -> None:
    model.net.cost_heads.bias[1] += 1e-3  # type: ignore[index, operator, union-attr]


def another_row(model: ServingModel) -> None:
    model.tables[0].weight[7] *= 1.01  # type: ignore[index, operator]


def another_policy(model: ServingModel) -> None:
    forward = model.forward
    model.forward = lambda d, v, o, m: forward(d, v, o, m + 0.2)  # type: ignore[method-assign]


def no_number(model: ServingModel) -> None:
    model.net.value_mean[0] = float("nan")


@pytest.mark.parametrize("breakage", [another_cost, another_row, another_policy, no_number])
def test_a_file_that_scores_otherwise_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breakage: Broken
) -> None:
    schema, statistics = random_schema(), random_statistics()
    model = trained(schema, statistics)
    serving = to_serving(model, schema, statistics.to_dict(), 0.7)

    def damaged(path: Path) -> ServingModel:
        # The first file is good, the second is not what was written.
        out = load(path)
        if "int8" in path.name:
            breakage(out)
        return out

    formats = {"plain": ("model.pt",), "second": ("model_int8_not.pt",)}
    monkeypatch.setattr(serving_export, "FORMATS", formats)
    monkeypatch.setattr(serving_export, "load", damaged)
    monkeypatch.setattr(ServingModel, "int8", lambda self: self)
    with pytest.raises(InputError, match=r"model_int8_not\.pt (predicts another|chooses other)"):
        write_checked(model, serving, random_table(200), list(formats), tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "model.pt").write_text("earlier")
    with pytest.raises(InputError):
        write_checked(model, serving, random_table(200), list(formats), tmp_path)
    assert names(tmp_path) == ["model.pt"]
    assert (tmp_path / "model.pt").read_text() == "earlier"


def test_rounding_of_float32_is_no_difference() -> None:
    schema, statistics = random_schema(), random_statistics()
    users: RCTTable = random_table(200)
    model = trained(schema, statistics)
    trial = Trial.of(model, users, 0.7)

    def off_by(share: float) -> Any:
        def prepare(batch: Any, price: float) -> Any:
            def call() -> Any:
                out = model(batch.dense, batch.sparse)
                value = out.value * (1 + share)
                return value, out.cost, policy_treatment(value, out.cost, price)

            return call

        return prepare

    row = trial.compare("near", off_by(1e-6), 10, 20, exact=True)
    assert 0 < row.value_error_relative < 1e-5
    assert (row.file_bytes, row.table_bytes, row.cost_error) == (10, 20, 0.0)
    assert all(t > 0 for t in row.milliseconds)
    with pytest.raises(InputError, match="predicts another value"):
        trial.compare("far", off_by(1e-4), 10, 20, exact=True)
    assert trial.compare("int8", off_by(1e-1), 10, 20, exact=False).value_error > 0.1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("formats=[onnx]", "formats='onnx'; allowed: plain, program, int8; "),
        ("formats=[]", "formats=[]"),
        ("formats=plain", "formats"),
        ("multiplier=-1", "multiplier=-1"),
        ("multiplier=nan", "multiplier=nan"),
        ("multiplier=inf", "multiplier=inf"),
        ("policy=missing.json", "policy 'missing.json' cannot be read"),
        ("policy=file", "policy 'file' is no JSON"),
        ("multiplier=much", "value 'much' for 'multiplier'"),
        ("users=missing.parquet", "no such file"),
        ("users=file", "file"),
        ("output=file", "is a file"),
        ("output=file/new", "is a file"),
        ("output=/proc/nowhere", "cannot be w"),
        ("ckpt=missing.ckpt", "missing.ckpt"),
        ("ckpt=file", "cannot be read"),
        ("ckpt=foreign.ckpt", "names no schema"),
        ("ckpt=shape.ckpt", "does not fit its model"),
        ("ckpt=nan.ckpt", "not finite"),
        ("format=[plain]", "did you mean 'formats'?"),
    ],
)
def test_bad_input(
    ckpt: Path,
    tmp_path: Path,
    call: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
    override: str,
    message: str,
) -> None:
    (tmp_path / "file").write_text("not a folder, no checkpoint, no users")
    torch.save({"weights": torch.zeros(2)}, tmp_path / "foreign.ckpt")
    wrong = torch.load(ckpt, weights_only=True)
    wrong["state_dict"]["net.value_heads.bias"] = torch.full((3,), float("nan"))
    torch.save(wrong, tmp_path / "nan.ckpt")
    wrong["state_dict"]["net.value_heads.bias"] = torch.zeros(99)
    torch.save(wrong, tmp_path / "shape.ckpt")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as caught:
        call(f"ckpt={ckpt}", "formats=[plain]", override)
    error = capfd.readouterr().err
    assert caught.value.code == 2, error
    assert error.startswith("error: "), error
    assert error.count("\n") == 1, error
    assert message in error, error
    assert "; allowed: " in error
    assert "; fix: " in error
    assert sorted(tmp_path.rglob("*")) == before
