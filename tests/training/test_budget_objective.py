"""The callback that brings the budget into training."""

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
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, budget_grid, score_spread
from lightning_budget.training.callbacks import BudgetObjective
from lightning_budget.training.export import load_model

BUDGETS = (0.1, 0.4)
WARM, EPOCHS = 2, 4


class Terms(L.Callback):
    """Names of the objective terms at each batch, and how often each was asked."""

    def __init__(self) -> None:
        self.names: list[list[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.names.append(list(pl_module.objective_terms))


def objective(**changes: Any) -> BudgetObjective:
    settings = {"budgets": BUDGETS, "warm_start_epochs": WARM, "weight": 2.0}
    return BudgetObjective(BudgetRegularizer(Softmax(1.0)), **{**settings, **changes})


def predict(path: Path, data: CampaignDataModule) -> ResponsePrediction:
    batch = data.train.batch(torch.arange(len(data.train)))
    with torch.no_grad():
        return load_model(path)(batch.dense, batch.sparse)


def same_weights(a: Path, b: Path) -> bool:
    x, y = (torch.load(p, weights_only=True)["state_dict"] for p in (a, b))
    return all(torch.equal(x[k].nan_to_num(), y[k].nan_to_num()) for k in x)  # NaN: a cost to be learned


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> tuple[CampaignDataModule, Path, Path, Terms]:
    """Checkpoints of every epoch, without and with the objective."""
    data, terms = small_data(), Terms()
    folders = [tmp_path_factory.mktemp(name) for name in ("two_stage", "end_to_end")]
    for folder, extra in zip(folders, ([], [objective(), terms]), strict=True):
        module = small_module(data)
        small_trainer(folder, [*extra, EpochCheckpoints(folder)], max_epochs=EPOCHS).fit(module, data)
        assert module.objective_terms == {}  # nothing stays behind
    return data, *folders, terms


def test_the_warm_start_is_two_stage_training(fits: tuple[CampaignDataModule, Path, Path, Terms]) -> None:
    _, two_stage, end_to_end, _ = fits
    same = [same_weights(two_stage / f"{e}.ckpt", end_to_end / f"{e}.ckpt") for e in range(EPOCHS)]
    assert same == [True] * WARM + [False] * (EPOCHS - WARM)


def test_one_term_at_every_batch(fits: tuple[CampaignDataModule, Path, Path, Terms]) -> None:
    assert fits[3].names == [["goal"]] * (EPOCHS * 8)


@pytest.mark.parametrize("epoch", range(WARM, EPOCHS))
def test_multipliers_are_solved_from_predictions_of_the_whole_training_split(
    fits: tuple[CampaignDataModule, Path, Path, Terms], epoch: int
) -> None:
    data, _, folder, _ = fits
    # The state of this epoch was solved at its start, from the model as the epoch before left it.
    state = torch.load(folder / f"{epoch}.ckpt", weights_only=True)["callbacks"]["BudgetObjective"]
    prediction = predict(folder / f"{epoch - 1}.ckpt", data)
    expected = solve_multipliers(prediction.value, prediction.cost, budget_grid(BUDGETS, data.statistics.free_spend))
    torch.testing.assert_close(state["multipliers"].double(), expected.double(), rtol=1e-4, atol=1e-6)
    spread = score_spread(prediction, expected)
    torch.testing.assert_close(state["spread"].double(), spread.double(), rtol=1e-4, atol=1e-6)
    assert expected[0] > expected[1] > 0


def test_the_state_travels_in_the_checkpoint(fits: tuple[CampaignDataModule, Path, Path, Terms]) -> None:
    folder = fits[2]
    states = [
        torch.load(folder / f"{e}.ckpt", weights_only=True)["callbacks"]["BudgetObjective"] for e in range(EPOCHS)
    ]
    assert [s["multipliers"] is None for s in states] == [True] * WARM + [False] * (EPOCHS - WARM)
    restored = objective()
    restored.load_state_dict(states[-1])
    assert torch.equal(restored.multipliers, states[-1]["multipliers"])
    assert torch.equal(restored.spread, states[-1]["spread"])


@pytest.mark.parametrize(("name", "value"), [("weight", 0.0), ("weight", -1.0), ("warm_start_epochs", -1)])
def test_refuses(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"objective.{name}={value}"):
        objective(**{name: value})
