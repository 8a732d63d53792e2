"""`evaluate.py` and `allocate.py` on a real run, against the same computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest
import torch
from training_runs import ROOT, assert_same_report, call, report

from lightning_budget import files
from lightning_budget.allocation import allocate as allocate_problem
from lightning_budget.parquet import read_users
from lightning_budget.training.export import load_model, load_schema
from scripts import allocate, evaluate

BUDGET = 700.0


@pytest.fixture
def users(one_process: Path) -> Path:
    return one_process / "example_users.parquet"


def test_evaluate_repeats_the_report(one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = ",".join(str(one_process / phase / "best.ckpt") for phase in ("two_stage", "end_to_end"))
    out = tmp_path / "again"
    settings = (f"run_dir={out}", "resamples=20", "seed=1")
    call(evaluate.main, f"ckpt=[{both}]", *settings, monkeypatch=monkeypatch)
    # Unsharded tables: predictions differ in the last bits.
    assert_same_report(report(out), report(one_process), rtol=1e-4)
    assert (out / "curves.png").stat().st_size > 0


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


def test_the_run_s_checkpoint_is_that_of_its_last_phase(one_process: Path) -> None:
    assert (one_process / "best.ckpt").read_bytes() == (one_process / "end_to_end" / "best.ckpt").read_bytes()


def test_allocate_equals_allocating_by_hand(
    one_process: Path, users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, output = one_process / "best.ckpt", tmp_path / "new" / "out.parquet"
    # A batch size that does not divide the number of users.
    settings = (f"budget={BUDGET}", f"input={users}", f"output={output}", "batch_size=300", "accelerator=cpu")
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
    assert torch.equal(treatment, expected.assignment)
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


def test_a_failure_while_writing_leaves_the_old_file(
    one_process: Path,
    users: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out.parquet"
    output.write_bytes(b"yesterday's")

    def half(table: object, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.pyarrow.parquet, "write_table", half)
    with pytest.raises(SystemExit) as caught:
        call(
            allocate.main,
            f"ckpt={one_process / 'best.ckpt'}",
            *(f"budget={BUDGET}", f"input={users}", f"output={output}"),
            monkeypatch=monkeypatch,
        )
    assert caught.value.code == 2
    assert "No space left on device" in capsys.readouterr().err
    assert output.read_bytes() == b"yesterday's"
    assert list(tmp_path.iterdir()) == [output]


def test_scripts_are_those_of_the_checkout() -> None:
    assert Path(allocate.__file__).is_relative_to(ROOT)
