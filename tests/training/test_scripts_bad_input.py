"""Bad input to the real command lines: one line that says what, what is allowed and how to mend it, and no trace."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from training_runs import FEW, ROOT, call, environment

from lightning_budget.cli import folder as folder_module
from scripts import allocate, evaluate, train

Refused = Callable[..., str]
N = 60


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Refused:
    """Run a script that must refuse; its message. Nothing may be new below ``tmp_path`` afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder_module, "_claims", [])

    def refuse(main: Callable[[], None], *overrides: str) -> str:
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}, set(tmp_path.rglob("*"))
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(main, *overrides, monkeypatch=monkeypatch)
        error = capfd.readouterr().err
        assert caught.value.code == 2, error
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert "; allowed: " in error
        assert "; fix: " in error
        assert "Traceback" not in error
        after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}, set(tmp_path.rglob("*"))
        assert after == before
        return error

    return refuse


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.embeding_dim=8", "did you mean 'model.embedding_dim'?"),
        ("max_epochs=3", "did you mean 'trainer.max_epochs'?"),
        ("data=hilstrom", "unknown data 'hilstrom'; allowed: campaign, campaign_mt7, criteo, "),
        ("objective=defualt", "did you mean 'objective=default'?"),
        ("data=hillstrom", "TableRCTDataModule"),  # with the sizes of a campaign
        ("data=table", "no value for data."),
        ("budgets=[0]", "budget fraction 0"),
        ("budgets=[1.5]", "budget fraction 1.5"),
        ("budgets=[]", "no budget fractions"),
        ("objective.weight=-1", "objective.weight=-1"),
        ("objective.warm_start_epochs=-1", "objective.warm_start_epochs=-1"),
        ("objective.weighting=dr", "objective.weighting='dr'; allowed: ipw, hajek, poststratified, doubly_robust"),
        ("estimator.temperature=0", "estimator.temperature=0"),
        ("estimator.name=sofmax", "estimator.name='sofmax'"),
        ("model.name=tarnett", "model.name='tarnett'; allowed: tarnet"),
        ("model.embedding_dim=0", "model.embedding_dim=0"),
        ("model.optimizer.lr=-1", "lr=-1"),
        ("model.optimizer.schedule=cosin", "schedule='cosin'; allowed: constant, cosine"),
        ("resamples=0", "resamples=0"),
        ("trainer.devices=0", "devices"),
        ("trainer.accumulate_grad_batches=2", "accumulate_grad_batches=2"),
        ("trainer.strategy=torchrecc", "torchrecc"),
        ("trainer.strategy=ddp", "trainer.strategy='ddp'; allowed: auto, torchrec"),
        ("model.dense_hidden=[]", "model.dense_hidden=[]"),
        ("model.dropout=1", "model.dropout=1"),
        ("trainer.precision=17", "17"),
        ("data.batch_size=0", "batch size 0"),
        ("data.train_rows=0", "train_rows=0"),
        ("ckpt_path=nowhere", "nowhere"),
        ("run_dir=file/run", "file"),
    ],
)
def test_train(refused: Refused, tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert message in refused(train.main, *FEW, "run_dir=run", override)


def trial(tmp_path: Path, **changes: object) -> str:
    """A good trial as csv, but for ``changes``; the overrides that name it."""
    rng = np.random.default_rng(0)
    arm = rng.integers(0, 2, N)
    columns = {
        "arm": np.array(["none", "offer"])[arm],
        "spend": rng.exponential(3.0, N),
        "paid": arm.astype(float),
        "p": np.full(N, 0.5),
        "age": rng.integers(18, 80, N).astype(float),
    }
    columns |= changes  # type: ignore[arg-type]
    pyarrow.csv.write_csv(pa.table({k: v for k, v in columns.items() if v is not None}), tmp_path / "trial.csv")
    return str(tmp_path / "trial.csv")


def put(value: float, fill: float = 0.5) -> np.ndarray:
    column = np.full(N, fill)
    column[7] = value
    return column


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"spend": None}, ["no column 'spend' (for value)"]),
        ({"age": None}, ["no column 'age'"]),
        ({"arm": np.array(["none", "gift"])[np.arange(N) % 2]}, ["arm", "gift"]),
        ({"arm": np.array(["none"] * N)}, ["offer"]),
        ({"spend": put(np.nan)}, ["spend"]),
        ({"spend": put(np.inf)}, ["spend"]),
        ({"p": put(0.0)}, ["'p'", "(0, 1]"]),
        ({"p": put(1.5)}, ["'p'", "(0, 1]"]),
        ({"paid": put(-1.0)}, ["paid"]),
        ({"paid": np.zeros(N)}, ["cost"]),
        ({"age": np.array(["old"] * N)}, ["age", "old"]),
    ],
)
def test_train_on_bad_data(refused: Refused, tmp_path: Path, changes: dict[str, object], messages: list[str]) -> None:
    error = refused(train.main, *own(trial(tmp_path, **changes)))
    assert all(m in error for m in messages), error


def own(path: str) -> list[str]:
    names = ["treatment=arm", "arms=[none,offer]", "value=spend", "cost=paid", "propensity=p", "dense=[age]"]
    return [
        *("data=table", f"data.path={path}", *(f"data.{n}" for n in names), "data.batch_size=16"),
        *("logger=csv", "trainer.max_epochs=1", "trainer.accelerator=cpu", "run_dir=run"),
    ]


def test_hillstrom_without_its_file(refused: Refused) -> None:
    assert "data.path is missing" in refused(train.main, "data=hillstrom", "logger=csv", "run_dir=run")


def test_train_on_no_data(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("arm,spend,paid,p,age\n")
    assert "empty.csv" in refused(train.main, *own("empty.csv"))
    (tmp_path / "nothing.csv").touch()
    assert "nothing.csv" in refused(train.main, *own("nothing.csv"))
    assert "no such file" in refused(train.main, *own("missing.csv"))


def test_train_refuses_a_checkpoint_of_another_model(
    one_process: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(one_process, copy)
    (copy / "end_to_end" / "done.json").unlink()
    error = refused(train.main, f"ckpt_path={copy}", "model.embedding_dim=16")
    assert "model.embedding_dim" in error
    (copy / "end_to_end" / "last.ckpt").write_bytes((copy / "end_to_end" / "last.ckpt").read_bytes()[:1000])
    assert "cannot be read" in refused(train.main, f"ckpt_path={copy}")


@pytest.fixture
def checkpoint(one_process: Path, tmp_path: Path) -> Path:
    """A checkpoint in a run folder of its own."""
    shutil.copytree(one_process, tmp_path / "run", ignore=shutil.ignore_patterns("csv"))
    return tmp_path / "run" / "best.ckpt"


def test_checkpoints_that_cannot_be_used(checkpoint: Path, refused: Refused) -> None:
    users, run = checkpoint.with_name("example_users.parquet"), checkpoint.parent
    good = checkpoint.read_bytes()
    (run / "truncated.ckpt").write_bytes(good[: len(good) // 2])
    (run / "empty.ckpt").touch()
    torch.save({"weights": torch.zeros(2)}, run / "foreign.ckpt")
    wrong = torch.load(checkpoint, weights_only=True)
    wrong["state_dict"]["net.value_heads.bias"] = torch.zeros(99)
    torch.save(wrong, run / "shape.ckpt")
    for name, message in (
        ("missing.ckpt", "is not there, or not whole"),
        ("truncated.ckpt", "cannot be read"),
        ("empty.ckpt", "cannot be read"),
        ("foreign.ckpt", "names no schema"),
        ("shape.ckpt", "does not fit its model"),
    ):
        allocation = (f"ckpt={run / name}", "budget=100", f"input={users}", "output=out.parquet")
        assert message in refused(allocate.main, *allocation)
        assert message in refused(evaluate.main, f"ckpt={run / name}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget=0", "budget=0"),
        ("budget=-5", "budget=-5"),
        ("budget=nan", "budget=nan"),
        ("budget=inf", "budget=inf"),
        ("budget=much", "value 'much' for 'budget'"),
        ("batch_size=0", "batch_size=0"),
        ("output=out.csv", "a file ending in .parquet"),
        ("output=file/out.parquet", "file"),
        ("accelerator=cuda", "without a CUDA device"),
        ("input=missing.parquet", "no such file"),
        ("input=trial.csv", "no column"),
        ("accelerator=tpuu", "accelerator"),
        ("buget=5", "did you mean 'budget'?"),
    ],
)
def test_allocate(checkpoint: Path, refused: Refused, tmp_path: Path, override: str, message: str) -> None:
    if override == "accelerator=cuda" and torch.cuda.is_available():
        pytest.skip("has a CUDA device")
    (tmp_path / "file").write_text("not a folder")
    trial(tmp_path)
    users = checkpoint.with_name("example_users.parquet")
    good = (f"ckpt={checkpoint}", "budget=100", f"input={users}", "output=new/out.parquet")
    assert message in refused(allocate.main, *good, override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split=tests"], "split 'tests'"),
        (["budgets=[0]"], "fraction"),
        (["resamples=0"], "resamples=0"),
        (["run_dir=file/out"], "file"),
        (["data=campaign", "data.users=50"], "was trained on other columns, arms or tables"),
        (["data=campaign", "data.face_values=[0,3]"], "was trained on other columns, arms or tables"),
        (["data=hillstrom"], "data.path is missing"),
    ],
)
def test_evaluate(checkpoint: Path, refused: Refused, tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    small = ["data.train_rows=1000", "data.val_rows=1000", "data.test_rows=1000"]
    extra = small if "data=campaign" in overrides else []
    assert message in refused(evaluate.main, f"ckpt={checkpoint}", *extra, *overrides)


def test_evaluate_the_same_checkpoint_twice(checkpoint: Path, refused: Refused) -> None:
    assert "different checkpoints" in refused(evaluate.main, f"ckpt=[{checkpoint},{checkpoint}]")


def test_a_process_of_its_own_says_no_more(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "train.py"), *FEW, "objective.weight=-1", "run_dir=run"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: objective.weight=-1")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
