"""What the model's allocation would earn, estimated on the validation split after every epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_budget.allocation import policy_treatment
from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.losses.budgets import budget_grid
from lightning_budget.metrics.functional.checks import Normalization
from lightning_budget.metrics.functional.cost_curve import CostCurve, cost_curve, policy_curve
from lightning_budget.metrics.functional.oracle import regret
from lightning_budget.table import RCTTable
from lightning_budget.training.data import trial_data
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.objective.refresh import weighted_multipliers
from lightning_budget.training.predict import Part, gather_rows


class AllocationMetrics(L.Callback):
    """Log what an allocation by the model would do on the validation split, at each budget b.

    - ``val/eom_hajek@b``: expected outcome where the factual spend is b; ``val/eom_hajek``: their mean;
    - ``val/spend@b``: factual spend of what would be deployed, at the multiplier that predicted costs give;
    - ``val/share_<arm>@b``: its arm mix;
    - ``val/regret@b``: true value lost to the oracle's allocation, where a simulator knows it.

    The same on every rank and for any number of ranks, so that checkpoints and early stopping can monitor it.

    Args:
        budgets: fractions of the trial's free spend.
        normalization: ``hajek`` or ``ipw``; part of the names.
    """

    def __init__(
        self, budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5), normalization: Normalization = "hajek"
    ) -> None:
        self.fractions = tuple(budgets)
        self.normalization: Normalization = normalization
        self._parts: list[Part] = []
        self._optimum: tuple[RCTTable, CostCurve] | None = None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._parts = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: RCTBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        predicted = cast("dict[str, Tensor]", outputs)
        self._parts.append((batch.row, predicted["value"], predicted["cost"]))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        row, prediction = gather_rows(self._parts)
        self._parts = []
        if trainer.sanity_checking:
            return
        table = trial_data(trainer).val
        if len(row) < len(table):
            table = table.select(row)
        module = cast("BudgetModule", pl_module)
        budgets = budget_grid(self.fractions, module.statistics.free_spend)
        arms = module.schema.treatments
        # The optimum is the table's alone, and takes as long as all the rest.
        if table.has_oracle and (self._optimum is None or self._optimum[0] is not table):
            self._optimum = table, optimum_of(table)
        optimum = self._optimum[1] if self._optimum and table.has_oracle else None
        results = allocation_metrics(table, prediction, budgets, arms, self.fractions, self.normalization, optimum)
        monitored = f"val/eom_{self.normalization}"
        pl_module.log(monitored, results.pop(monitored), prog_bar=True, sync_dist=True)
        pl_module.log_dict(results, sync_dist=True)


def allocation_metrics(
    table: RCTTable,
    prediction: ResponsePrediction,
    budgets: Tensor,
    arms: Sequence[str],
    fractions: Sequence[float],
    normalization: Normalization,
    optimum: CostCurve | None = None,
) -> dict[str, float]:
    """The numbers that :class:`AllocationMetrics` logs, by name; ``optimum`` saves :func:`optimum_of` the table."""
    value, cost = prediction.value, prediction.cost
    logged = (table.treatment, table.value, table.cost, table.propensity)
    curve = cost_curve(value, cost, *logged, normalization=normalization, weight=table.weight)
    named: dict[str, Tensor] = {f"eom_{normalization}": curve.at_budget(budgets).value}
    multipliers = weighted_multipliers(prediction, budgets, table.weight)
    named["spend"] = curve.at_multiplier(multipliers).spend
    mix = [_shares(policy_treatment(value, cost, float(m)), table.weight, len(arms)) for m in multipliers]
    named |= {f"share_{arm}": torch.stack([shares[j] for shares in mix]) for j, arm in enumerate(arms)}
    if table.true_value is not None and table.true_cost is not None:
        oracle = optimum or optimum_of(table)
        policy = policy_curve(value, cost, table.true_value, table.true_cost, table.weight)
        named["regret"] = regret(policy, oracle, budgets)
    results = {f"val/{k}@{f:g}": float(x) for k, v in named.items() for f, x in zip(fractions, v, strict=True)}
    results[f"val/eom_{normalization}"] = float(named[f"eom_{normalization}"].mean())
    return results


def _shares(treatment: Tensor, weight: Tensor | None, arms: int) -> Tensor:
    """``[K]``: of all users, by sample weight."""
    counts = torch.bincount(treatment, None if weight is None else weight.double(), minlength=arms)
    return counts / counts.sum()


def optimum_of(table: RCTTable) -> CostCurve:
    """True spend and value of the best policy there is, for a table with an oracle."""
    truth = cast("Tensor", table.true_value), cast("Tensor", table.true_cost)
    return policy_curve(*truth, *truth, table.weight)
