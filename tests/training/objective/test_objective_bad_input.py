"""Bad input to the goal, by the command line: one line, and nothing is written or trained on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_runs import FEW, SMALL, call

from lightning_budget.batch import ResponsePrediction
from lightning_budget.cli import folder as folder_module
from lightning_budget.errors import InputError
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.budgets import FixedBudgets
from lightning_budget.training.objective.build import objective_builder
from lightning_budget.training.objective.refresh import measure_goal
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source
from lightning_budget.training.objective.targets import Targets
from scripts import train


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder_module, "_claims", [])


def error_of(*overrides: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        call(train.main, "run_dir=run", *overrides, monkeypatch=monkeypatch)
    said = capfd.readouterr().err
    assert caught.value.code == 2, said
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "; allowed: " in lines[0]
    assert "; fix: " in lines[0]
    return said


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("estimator=ness", "unknown estimator 'ness'; allowed: finite_difference, gaussian, ifd, "),
        ("estimator=softmax estimator.pairs=4", "estimator.pairs of 'softmax'; allowed: temperature; fix: leave it"),
        ("estimator.temprature=1", "did you mean 'estimator.temperature'?"),
        ("estimator.temperature=hot", "estimator.temperature='hot'; allowed: a number"),
        ("objective.weight=0", "objective.weight=0.0; allowed: a number above 0"),
        ("objective.form=duel", "objective.form='duel'; allowed: dual, primal"),
        ("objective.budgets={shape:normal,low:0.1,high:0.5}", "objective.budgets.shape='normal'; allowed: uniform"),
        ("objective.warm_start_ckpt=none.ckpt", "objective.warm_start_ckpt='none.ckpt' is not there"),
    ],
)
def test_refused_before_anything_is_written(
    overrides: str, message: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = error_of(*FEW, *overrides.split(), monkeypatch=monkeypatch, capfd=capfd)
    assert said.count("\n") == 1
    assert message in said
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"cost_term": "nu"}, "objective.cost_term='nu'; allowed: none, lambda, mu"),
        ({"baseline": "mean"}, "objective.baseline='mean'; allowed: none, centred"),
        ({"width_unit": "metre"}, "objective.width_unit='metre'; allowed: spread, value"),
        ({"outcome_model": "theirs"}, "objective.outcome_model='theirs'; allowed: own, cross_fitted"),
        ({"source": "half"}, "objective.source='half'; allowed: full, running, batch"),
        ({"budget_unit": "percent"}, "objective.budget_unit='percent'; allowed: fraction, currency"),
        ({"budget_unit": "currency"}, "objective.budget_unit=currency of the report's budgets"),
        ({"entropy": 2.0}, "objective.entropy=2"),
        ({"momentum": 1.0}, "objective.momentum=1"),
        ({"ramp_epochs": -1.0}, "objective.ramp_epochs=-1"),
        ({"prior_rows": -1.0}, "objective.prior_rows=-1"),
        ({"width_start": 0.0}, "objective.width_start=0"),
        ({"refresh_every_n_steps": 0}, "objective.refresh_every_n_steps=0"),
        ({"budgets": [0.1, 0]}, "objective.budgets=0; allowed: finite numbers above 0"),
        ({"budgets": [-1], "budget_unit": "currency"}, "objective.budgets=-1"),
        ({"budgets": 0.3}, "objective.budgets=0.3; allowed: a list of amounts"),
        ({"multipliers": [1.0], "form": "primal"}, "objective.multipliers with form=primal"),
        ({"multipliers": [-1.0]}, "objective.multipliers=[-1.0]"),
        ({"multipliers": [1.0], "budgets": [0.1]}, "objective.budgets and objective.multipliers"),
    ],
)
def test_refused_where_it_is_built(objective: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        objective_builder({"name": "softmax", "temperature": None}, objective, [0.1, 0.3])
    assert message in str(caught.value)


def test_refused_of_the_estimator_and_the_report() -> None:
    for estimator, budgets, message in (
        ({"name": "softmax", "temperature": -1}, [0.1], "estimator.temperature=-1; allowed: a number above 0"),
        ({"name": "nes", "pairs": 0}, [0.1], "estimator.pairs=0; allowed: a whole number of at least 1"),
        ({"name": "nes", "pairs": "many"}, [0.1], "estimator.pairs='many'; allowed: a number"),
        ({"name": "ness"}, [0.1], "estimator.name='ness'; allowed: softmax, "),
        ({"name": "nes"}, [0], "budget fraction 0"),
    ):
        with pytest.raises(InputError) as caught:
            objective_builder(estimator, {}, budgets)
        assert message in str(caught.value)


def test_what_is_built_is_what_was_asked_for() -> None:
    asked = {
        **{"form": "primal", "cost_term": "mu", "weighting": "hajek", "baseline": "centred", "entropy": 0.5},
        **{"weight": 3.0, "warm_start_epochs": 1, "ramp_epochs": 0.5, "width_start": 2.0, "width_end": 0.5},
        "prior_rows": 700.0,
        **{"source": "running", "momentum": 0.9, "refresh_every_n_steps": None, "outcome_model": "cross_fitted"},
        **{"budgets": [1.5, 2], "budget_unit": "currency", "multipliers": None, "width_unit": "value"},
    }
    build = objective_builder({"name": "nes", "sigma": 0.7, "pairs": None}, asked, [0.1])
    found = build()
    assert found is not build()
    assert found.regularizer.form == GoalForm("primal", "mu", "hajek", "centred", 0.5, "value")
    assert (found.regularizer.estimator.width, found.regularizer.estimator.evaluations_per_step) == (0.7, 32)
    assert found.schedule == Schedule(3.0, 1, 0.5, 2.0, 0.5, 700.0)
    assert found.source == Source("running", None, 0.9)
    assert found.targets == Targets(FixedBudgets((1.5, 2.0), "currency"))
    assert found.outcome_model == "cross_fitted"
    default = objective_builder({"name": "softmax"}, {"multipliers": [1, 2]}, [0.1])()
    assert default.targets.multipliers == (1.0, 2.0)
    assert objective_builder({"name": "softmax"}, {}, [0.1])().targets.budgets == FixedBudgets((0.1,))


def test_training_that_diverges_ends_with_one_line_and_good_checkpoints(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    short = ["baseline=false", "data.train_rows=1024", "callbacks.progress=null", "objective.warm_start_epochs=0"]
    said = error_of(*SMALL, *short, "model.optimizer.lr=1e30", monkeypatch=monkeypatch, capfd=capfd)
    assert " at step 1" in said
    assert "training stops and the last checkpoint stays as it is" in said
    assert not list(Path("run").rglob("*.ckpt"))


def test_the_door_of_a_measure() -> None:
    n = 5
    rows = SimpleNamespace(
        weight=None,
        treatment=torch.arange(n) % 2,
        value=torch.ones(n),
        cost=torch.ones(n),
        propensity=torch.full((n,), 0.5),
    )
    prediction = ResponsePrediction(torch.tensor([[1.0, 2.0]]).repeat(n, 1), torch.tensor([[3.0, 4.0]]).repeat(n, 1))
    regularizer = BudgetRegularizer(Softmax(1.0))

    def refusal(*targets: object, p: ResponsePrediction = prediction, **changes: torch.Tensor) -> str:
        with pytest.raises(InputError) as caught:
            measure_goal(regularizer, p, SimpleNamespace(**{**vars(rows), **changes}), *targets)  # type: ignore[arg-type]
        return str(caught.value)

    def budgets(b: float) -> torch.Tensor:
        return torch.tensor([3.5, b], dtype=torch.float64)

    assert measure_goal(regularizer, prediction, rows, budgets(5.0), None).multiplier.tolist() == [1.0, 0.0]
    # Everyone costs 3 at least.
    assert "budget" in (said := refusal(budgets(2.5), None))
    assert "allowed: " in said
    for bad in (0.0, 1.5):
        assert "propensities from " in refusal(budgets(5.0), None, propensity=torch.tensor([0.5] * (n - 1) + [bad]))
    for bad in (float("nan"), float("inf")):
        broken = ResponsePrediction(prediction.value.clone(), prediction.cost)
        broken.value[2, 1] = bad
        for targets in ((budgets(5.0), None), (None, (1.0,))):
            assert f"value[2, 1] is {bad}; allowed: finite numbers" in refusal(*targets, p=broken)
        assert "cost has entries that are not finite" in refusal(None, (1.0,), cost=torch.full((n,), bad))
