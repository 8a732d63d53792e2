"""What the model's allocation would earn, estimated on the validation split after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.budget_regularizer import budget_grid
from lightning_budget.metrics.eom import ExpectedOutcome
from lightning_budget.metrics.functional.checks import Normalization


class AllocationMetrics(L.Callback):
    """Log EOM at each budget as ``val/eom_hajek@0.1`` and their mean as ``val/eom_hajek``, value units per user.

    The same on every rank and for any number of ranks, so that checkpoints and early stopping can monitor it.

    Args:
        budgets: fractions of the trial's free spend.
        normalization: ``hajek`` or ``ipw``; part of the names.
    """

    def __init__(
        self, budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5), normalization: Normalization = "hajek"
    ) -> None:
        self.fractions, self.normalization = tuple(budgets), normalization
        self.metric: ExpectedOutcome | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        budgets = budget_grid(self.fractions, pl_module.statistics.free_spend)
        self.metric = ExpectedOutcome(budgets, self.normalization, compute_on_cpu=False).to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: ResponsePrediction,
        batch: RCTBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self.metric is not None
        self.metric.update(
            outputs.value, outputs.cost, batch.treatment, batch.value, batch.cost, batch.propensity, batch.row
        )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert self.metric is not None
        if trainer.sanity_checking:
            return
        results = list(self.metric.compute().values())
        self.metric.reset()
        name = f"val/eom_{self.normalization}"
        logged: dict[str, Any] = {f"{name}@{f:g}": v.float() for f, v in zip(self.fractions, results, strict=False)}
        pl_module.log_dict(logged)
        pl_module.log(name, results[-1].float(), prog_bar=True)
