"""Training that starts from the weights of a two-stage run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from objective_runs import Run, SaveAfter, fit, objective
from training_runs import small_data, small_module

from lightning_budget.errors import InputError
from lightning_budget.training.export import load_model
from lightning_budget.training.objective import warm_start
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.strategy import TorchRecStrategy

AT_ONCE = Schedule(2.0, warm_start_epochs=0)


@pytest.fixture(scope="module", params=["full", "sharded"])
def two_stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint inside a two-stage run."""
    folder = tmp_path_factory.mktemp(request.param)
    fit(folder, None, [SaveAfter(folder, (11,))], strategy=TorchRecStrategy(checkpoint=request.param))
    return folder / "11.ckpt"


def first_prediction_is_of(run: Run, path: Path) -> bool:
    step = run.spy.steps[0]
    with torch.no_grad():
        expected = load_model(path)(step.batch.dense, step.batch.sparse)
    return all(
        torch.allclose(getattr(step.prediction, x), getattr(expected, x), rtol=1e-6, atol=1e-6)
        for x in ("value", "cost")
    )


@pytest.mark.parametrize("strategy", ["torchrec", "auto"])
def test_the_first_step_predicts_what_the_checkpoint_does(two_stage: Path, tmp_path: Path, strategy: str) -> None:
    callback = objective(schedule=AT_ONCE, warm_start_ckpt=two_stage)
    run = fit(tmp_path, callback, [SaveAfter(tmp_path, (1,))], strategy=strategy, max_epochs=1)
    assert first_prediction_is_of(run, two_stage)
    # The weights alone: step, epoch and optimizers are those of a run that begins.
    assert min(run.spy.steps) == 0
    adam = torch.load(tmp_path / "1.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    assert {float(s["step"]) for s in adam.values()} == {1.0}
    cold = fit(tmp_path, objective(schedule=AT_ONCE), max_epochs=1)
    assert not first_prediction_is_of(cold, two_stage)


def test_it_is_loaded_once(two_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Path] = []
    load = warm_start.check_same_model
    monkeypatch.setattr(warm_start, "check_same_model", lambda path, module: (loads.append(path), load(path, module)))
    run = fit(tmp_path, objective(schedule=AT_ONCE, warm_start_ckpt=two_stage), [SaveAfter(tmp_path, (5,))])
    run.trainer.fit_loop.max_epochs = 4
    run.trainer.fit(run.module, run.data)
    assert len(run.spy.steps) == 32
    resumed = fit(tmp_path, objective(schedule=AT_ONCE, warm_start_ckpt=two_stage), resume=tmp_path / "5.ckpt")
    assert loads == [two_stage]
    assert resumed.spy.steps[5].loss == run.spy.steps[5].loss


def test_refuses_what_is_not_there_or_of_another_model(two_stage: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        objective(warm_start_ckpt=tmp_path / "none.ckpt")
    assert "objective.warm_start_ckpt=" in str(caught.value)
    assert "none.ckpt' is not there" in str(caught.value)
    other: dict[str, Any] = {"model": {**small_module(small_data()).hparams["model"], "head_hidden": 8}}
    with pytest.raises(InputError, match=r"^objective\.warm_start_ckpt: .*its model\.head_hidden is 4, this run's 8"):
        fit(tmp_path, objective(warm_start_ckpt=two_stage), module=other)
    (tmp_path / "empty.ckpt").touch()
    with pytest.raises(InputError, match="cannot be read"):
        fit(tmp_path, objective(warm_start_ckpt=tmp_path / "empty.ckpt"))
