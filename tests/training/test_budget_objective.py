"""The callback that brings the budget into training: when, and with which multipliers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from training_runs import EpochCheckpoints, small_data, small_module, small_trainer

from datamodules import CampaignDataModule
from lightning_budget.allocation import solve_multipliers
from lightning_budget.batch import ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.estimators import Softmax
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, GoalForm
from lightning_budget.losses.budgets import FixedBudgets, budget_grid
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.losses.measure import score_spread
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.export import load_model
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.targets import Targets

BUDGETS = (0.1, 0.4)
WARM, EPOCHS, STEPS = 2, 4, 8

Fits = tuple[CampaignDataModule, Path, Path, "Terms"]


class Terms(L.Callback):
    """Names of the objective terms at each batch; how often each is asked and a backward is done at each step."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []
        self.given: list[bool] = []
        self.backwards: list[int] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        term = pl_module.objective_terms["goal"]

        def counted(*args: Any) -> Any:
            result = term(*args)
            self.given.append(result is not None)
            return result

        pl_module.objective_terms["goal"] = counted

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.names.append(list(pl_module.objective_terms))
        self.backwards.append(0)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        assert loss.shape == ()
        self.backwards[-1] += 1


def objective(regularizer: BudgetRegularizer | None = None, **changes: Any) -> BudgetObjective:
    schedule = Schedule(**{"warm_start_epochs": WARM, "weight": 2.0, **changes})
    return BudgetObjective(regularizer or BudgetRegularizer(Softmax(1.0)), Targets(FixedBudgets(BUDGETS)), schedule)


def predict(path: Path, data: CampaignDataModule) -> ResponsePrediction:
    batch = data.train.batch(torch.arange(len(data.train)))
    with torch.no_grad():
        return load_model(path)(batch.dense, batch.sparse)


def state_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)["callbacks"]["BudgetObjective"]


def same_weights(a: Path, b: Path) -> bool:
    x, y = (torch.load(p, weights_only=True)["state_dict"] for p in (a, b))
    return all(torch.equal(x[k].nan_to_num(), y[k].nan_to_num()) for k in x)  # NaN: a cost to be learned


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Fits:
    """Checkpoints of every epoch, without and with the objective."""
    data, terms = small_data(), Terms()
    folders = [tmp_path_factory.mktemp(name) for name in ("two_stage", "end_to_end")]
    for folder, extra in zip(folders, ([], [objective(), terms]), strict=True):
        module = small_module(data)
        small_trainer(folder, [*extra, EpochCheckpoints(folder)], max_epochs=EPOCHS).fit(module, data)
        assert module.objective_terms == {}  # nothing stays behind
    return data, *folders, terms


def test_the_warm_start_is_two_stage_training(fits: Fits) -> None:
    _, two_stage, end_to_end, _ = fits
    same = [same_weights(two_stage / f"{e}.ckpt", end_to_end / f"{e}.ckpt") for e in range(EPOCHS)]
    assert same == [True] * WARM + [False] * (EPOCHS - WARM)


def test_one_scalar_and_one_backward_with_the_goal_after_the_warm_start(fits: Fits) -> None:
    terms = fits[3]
    assert terms.names == [["goal"]] * (EPOCHS * STEPS)
    assert terms.given == [False] * (WARM * STEPS) + [True] * ((EPOCHS - WARM) * STEPS)
    assert terms.backwards == [1] * (EPOCHS * STEPS)


@pytest.mark.parametrize("epoch", range(WARM, EPOCHS))
def test_multipliers_are_solved_from_predictions_of_the_whole_training_split(fits: Fits, epoch: int) -> None:
    data, _, folder, _ = fits
    # The state of this epoch was solved at its start, from the model as the epoch before left it.
    state = state_of(folder / f"{epoch}.ckpt")["goal"]
    prediction = predict(folder / f"{epoch - 1}.ckpt", data)
    expected = solve_multipliers(prediction.value, prediction.cost, budget_grid(BUDGETS, data.statistics.free_spend))
    torch.testing.assert_close(state["multiplier"].double(), expected.double(), rtol=1e-4, atol=1e-6)
    spread = score_spread(prediction, expected)
    torch.testing.assert_close(state["spread"].double(), spread.double(), rtol=1e-4, atol=1e-6)
    assert expected[0] > expected[1] > 0


def test_the_state_travels_in_the_checkpoint(fits: Fits) -> None:
    states = [state_of(fits[2] / f"{e}.ckpt") for e in range(EPOCHS)]
    assert [s["goal"] is None for s in states] == [True] * WARM + [False] * (EPOCHS - WARM)
    restored = objective()
    restored.load_state_dict(states[-1])
    assert restored.state is not None
    for name, tensor in GoalState.from_tensors(states[-1]["goal"]).tensors().items():
        assert torch.equal(restored.state.tensors()[name], tensor)
    assert restored.multipliers is restored.state.multiplier
    # Of a run with other budgets nothing but the count of refreshes is of use.
    other = BudgetObjective(objective().regularizer, Targets(FixedBudgets((0.1, 0.2, 0.3))))
    other.load_state_dict(states[-1])
    assert other.state is None


class Refuses(L.Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        raise ZeroDivisionError


def test_nothing_stays_behind_after_an_error(tmp_path: Path) -> None:
    data = small_data()
    module = small_module(data)
    with pytest.raises(ZeroDivisionError):
        small_trainer(tmp_path, [objective(), Refuses()]).fit(module, data)
    assert module.objective_terms == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", 0.0), ("weight", -1.0), ("weight", float("nan")), ("warm_start_epochs", -1), ("width_end", 0.0)],
)
def test_refuses(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"objective.{name}={value}"):
        objective(**{name: value})


def test_refuses_what_excludes_each_other() -> None:
    primal = BudgetRegularizer(Softmax(1.0), GoalForm(form="primal"))
    with pytest.raises(InputError, match=r"objective\.multipliers with form=primal"):
        BudgetObjective(primal, Targets(multipliers=(1.0,)))
    with pytest.raises(InputError, match=r"objective\.outcome_model='none'"):
        BudgetObjective(primal, outcome_model="none")  # type: ignore[arg-type]
