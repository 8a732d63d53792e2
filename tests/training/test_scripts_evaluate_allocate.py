"""`evaluate.py` and `allocate.py` on a real run, against the same computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from training_runs import ROOT, assert_same_report, call, report

from lightning_budget.allocation import allocate as allocate_problem
from lightning_budget.cli.build import saved_config
from lightning_budget.data.users import read_users
from lightning_budget.training.export import load_model, load_schema
from scripts import allocate, evaluate

BUDGET = 250.0
COLUMNS = ("user_id", "treatment")


@pytest.fixture
def users(one_process: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Users of the run, each once."""
    table = pyarrow.parquet.read_table(one_process / "example_users.parquet")
    seen: dict[object, int] = {}
    for row, user in enumerate(table["user_id"].to_pylist()):
        seen.setdefault(user, row)
    path = tmp_path_factory.mktemp("users") / "users.parquet"
    pyarrow.parquet.write_table(table.take(list(seen.values())), path)
    return path


def test_evaluate_repeats_the_report(one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ",".join(str(one_process / phase / "best.ckpt") for phase in ("two_stage", "end_to_end"))
    out = tmp_path / "again"
    settings = (f"run_dir={out}", "resamples=20", "seed=1")
    call(evaluate.main, f"ckpt=[{both}]", *settings, monkeypatch=monkeypatch)
    found, trained = report(out), report(one_process)
    # Unsharded tables: predictions differ in the last bits.
    assert_same_report({k: found[k] for k in trained}, trained, rtol=1e-4)
    assert set(found) - set(trained) >= {"checks", "increments", "areas", "rankings", "calibration", "bands"}
    for name in ("curves.png", "curves.svg", "calibration.png", "calibration.svg", "curves.parquet"):
        assert (out / name).stat().st_size > 0


def test_evaluate_one_checkpoint_on_another_split(
    one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "val"
    settings = ("split=val", "budgets=[0.2]", "resamples=20", f"run_dir={out}")
    call(evaluate.main, f"ckpt={one_process / 'best.ckpt'}", *settings, monkeypatch=monkeypatch)
    found = report(out)
    assert str(out) in capsys.readouterr().out
    assert found != report(one_process)
    assert "0.2" in json.dumps(found)


def test_a_checkpoint_and_its_predictions_in_a_file_are_equal(
    one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = one_process / "best.ckpt"
    datamodule, table, _ = evaluate.load_split(saved_config(one_process).data, [checkpoint], "val")
    prediction = evaluate.predict(checkpoint, datamodule, table, "it")
    parts = (("value", prediction.value), ("cost", prediction.cost))
    columns = {f"{name}_{j}": x[:, j].numpy() for name, x in parts for j in range(x.shape[1])}
    path = tmp_path / "copy.parquet"
    # Rows of one user differ in their features, so that every row has a prediction of its own.
    pyarrow.parquet.write_table(pa.table(columns), path)
    settings = (f"predictions=[{path}]", "row_order=true", "split=val", "resamples=20", f"run_dir={tmp_path / 'out'}")
    call(evaluate.main, f"ckpt={checkpoint}", *settings, monkeypatch=monkeypatch)
    found = report(tmp_path / "out")
    own, copy = found["methods"]
    assert copy == "copy"
    for part in ("rows", "deployments", "curves", "bands", "areas", "rankings", "calibration"):
        listed = [[{**x, "method": ""} for x in found[part] if x["method"] == name] for name in (own, copy)]
        assert listed[0] == listed[1]
        assert listed[0]
    (difference,) = found["differences"]
    assert not any(difference["eom_hajek"]["high"] + difference["eom_hajek"]["low"])


def test_the_run_s_checkpoint_is_that_of_its_last_phase(one_process: Path) -> None:
    assert (one_process / "best.ckpt").read_bytes() == (one_process / "end_to_end" / "best.ckpt").read_bytes()


def test_the_example_has_every_user_once(one_process: Path) -> None:
    ids = pyarrow.parquet.read_table(one_process / "example_users.parquet")["user_id"].to_pylist()
    assert len(set(ids)) == len(ids) > 50


def test_allocate_equals_allocating_by_hand(
    one_process: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, output = one_process / "best.ckpt", tmp_path / "new" / "out.parquet"
    # A batch size that does not divide the number of users.
    settings = (f"budget={BUDGET}", f"input={users}", f"output={output}", "batch_size=77", "accelerator=cpu")
    call(allocate.main, f"ckpt={checkpoint}", *settings, monkeypatch=monkeypatch)

    schema = load_schema(checkpoint)
    table, ids = read_users(users, schema)
    batch = table.batch(torch.arange(len(table)))
    with torch.no_grad():
        prediction = load_model(checkpoint)(batch.dense, batch.sparse)
    expected = allocate_problem(prediction.value, prediction.cost, BUDGET)
    written = pyarrow.parquet.read_table(output)
    treatment = torch.from_numpy(written["treatment"].to_numpy().copy())
    assert written["user_id"].to_pylist() == ids.to_pylist()
    assert torch.equal(treatment, expected.assignment.long())
    assert written["treatment_name"].to_pylist() == [schema.treatments[t] for t in treatment.tolist()]
    for name, matrix in (("value", prediction.value), ("cost", prediction.cost)):
        column = torch.tensor(written[name].to_pylist())
        torch.testing.assert_close(column, matrix.gather(1, treatment[:, None])[:, 0], rtol=1e-5, atol=1e-6)

    spend = sum(written["cost"].to_pylist())
    assert 0.9 * BUDGET < spend <= BUDGET
    assert len(treatment.unique()) > 2
    certificate = json.loads(written.schema.metadata[b"certificate"])
    assert certificate.keys() == expected.certificate().keys()
    assert certificate["spend"] == pytest.approx(spend, rel=1e-6)
    assert certificate["value"] == pytest.approx(sum(written["value"].to_pylist()), rel=1e-6)
    assert 0 <= certificate["gap"] < 0.05 * certificate["value"]


def test_allocate_a_folder_of_features(
    one_process: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pyarrow.parquet.read_table(users)
    # Partitions that end where batches do: rows meet the same neighbours, and their predictions do not differ in bits.
    for i, (start, stop) in enumerate(((0, 100), (100, 200), (200, len(table)))):
        (tmp_path / "in" / f"part={i}").mkdir(parents=True)
        pyarrow.parquet.write_table(table.slice(start, stop - start), tmp_path / "in" / f"part={i}" / "a.parquet")
    found = {}
    for source, output in ((users, "a.parquet"), (tmp_path / "in", "c")):
        settings = (f"budget={BUDGET}", f"input={source}", f"output={tmp_path / output}", "batch_size=100")
        call(allocate.main, f"ckpt={one_process / 'best.ckpt'}", *settings, "accelerator=cpu", monkeypatch=monkeypatch)
        files = sorted((tmp_path / output).rglob("*.parquet")) if output == "c" else [tmp_path / output]
        parts = [pyarrow.parquet.ParquetFile(f).read() for f in files]
        found[output] = {str(u): t for p in parts for u, t in zip(*(p[c].to_pylist() for c in COLUMNS), strict=True)}
    assert len(found["a.parquet"]) == len(table)
    assert found["a.parquet"] == found["c"]


def test_allocate_predictions_of_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = torch.Generator().manual_seed(0)
    value, cost = (torch.rand(500, 3, generator=generator) * torch.tensor([0.0, 1.0, 2.0]) for _ in range(2))
    ids = 3 * torch.arange(500)
    columns = {f"{n}_{j}": x[:, j].numpy() for n, x in (("uplift", value), ("price", cost)) for j in range(3)}
    pyarrow.parquet.write_table(pa.table({"customer": ids.numpy(), **columns}), tmp_path / "in.parquet")
    call(
        allocate.main,
        f"input={tmp_path / 'in.parquet'}",
        f"output={tmp_path / 'out.parquet'}",
        "budget=100",
        "user_column=customer",
        "value_columns=[uplift_0,uplift_1,uplift_2]",
        "cost_columns=[price_0,price_1,price_2]",
        "treatments=[none,small,large]",
        monkeypatch=monkeypatch,
    )
    expected = allocate_problem(value, cost, 100.0, key=ids)
    written = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert written["user_id"].to_pylist() == ids.tolist()
    assert written["treatment"].to_pylist() == expected.assignment.tolist()
    assert json.loads(written.schema.metadata[b"certificate"]) == expected.certificate()
    shown = capsys.readouterr().out
    assert f"none {int((expected.assignment == 0).sum()):,}, small" in shown
    assert "multiplier" in shown


def test_a_failure_while_writing_leaves_the_old_file(
    one_process: Path,
    users: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out.parquet"
    output.write_bytes(b"yesterday's")
    command = (f"ckpt={one_process / 'best.ckpt'}", f"budget={BUDGET}", f"input={users}", f"output={output}")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pyarrow.parquet.ParquetWriter, "write_table", full)
        with pytest.raises(SystemExit) as caught:
            call(allocate.main, *command, monkeypatch=monkeypatch)
    assert caught.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert output.read_bytes() == b"yesterday's"
    call(allocate.main, *command, monkeypatch=monkeypatch)
    assert len(pyarrow.parquet.read_table(output))
    assert [p for p in tmp_path.iterdir() if p.suffix != ".json"] == [output]


def test_scripts_are_those_of_the_checkout() -> None:
    assert Path(allocate.__file__).is_relative_to(ROOT)
