"""The callback that turns a prediction model into one trained for allocation under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from lightning_budget.allocation import solve_multipliers
from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.budget_regularizer import BudgetRegularizer, budget_grid, score_spread
from lightning_budget.training.data import trial_data
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.predict import predict_batches


class BudgetObjective(L.Callback):
    """Add the marketing goal to the loss, after a two-stage warm start.

    At the start of every epoch from ``warm_start_epochs`` on, the whole training split is predicted and the multiplier
    of each budget solved from it; during the epoch ``weight · R`` at those multipliers joins the loss. A mini-batch's
    own multipliers would be noise.

    Args:
        regularizer: the goal and its gradient estimator.
        budgets: fractions of ``free_spend``.
        warm_start_epochs: epochs of prediction loss alone.
        weight: of the goal, measured in units of the value's scale.
    """

    def __init__(
        self,
        regularizer: BudgetRegularizer,
        budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5),
        warm_start_epochs: int = 2,
        weight: float = 1.0,
    ) -> None:
        if warm_start_epochs < 0:
            raise InputError(f"objective.warm_start_epochs={warm_start_epochs}", "at least 0", "raise it")
        if weight <= 0:
            raise InputError(f"objective.weight={weight}", "above 0", "use objective=none for two-stage training")
        self.regularizer = regularizer
        self.fractions = tuple(budgets)
        self.warm_start_epochs = warm_start_epochs
        self.weight = weight
        self.multipliers: Tensor | None = None
        self.spread: Tensor | None = None
        self._scale = 1.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            module = cast("BudgetModule", pl_module)
            module.objective_terms["goal"] = self.goal
            self._scale = module.statistics.value_scale

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            cast("BudgetModule", pl_module).objective_terms.pop("goal", None)

    def goal(self, batch: RCTBatch, prediction: ResponsePrediction) -> Tensor | None:
        """``weight · R / value scale`` of a batch, ``None`` during the warm start."""
        if self.multipliers is None or self.spread is None:
            return None
        return self.weight / self._scale * self.regularizer(batch, prediction, self.multipliers, self.spread)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Re-solve the multipliers from predictions of the whole training split."""
        if trainer.current_epoch < self.warm_start_epochs:
            return
        datamodule = trial_data(trainer)
        table = datamodule.train
        prediction = predict_batches(pl_module, datamodule.table_dataloader(table), len(table), pl_module.device)
        budgets = budget_grid(self.fractions, cast("BudgetModule", pl_module).statistics.free_spend)
        multipliers = solve_multipliers(prediction.value, prediction.cost, budgets)
        spread = score_spread(prediction, multipliers)
        self.multipliers = multipliers.to(pl_module.device, torch.float32)
        self.spread = spread.to(pl_module.device, torch.float32)
        logged = {f"objective/multiplier@{f:g}": m for f, m in zip(self.fractions, multipliers, strict=True)}
        pl_module.log_dict(
            {k: m.float() for k, m in logged.items()}, on_step=False, on_epoch=True, batch_size=1, sync_dist=True
        )

    def state_dict(self) -> dict[str, Any]:
        return {"multipliers": self.multipliers, "spread": self.spread}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.multipliers, self.spread = state_dict["multipliers"], state_dict["spread"]
