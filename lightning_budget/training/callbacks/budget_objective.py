"""The callback that turns a prediction model into one trained for allocation under a budget."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning as L
import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.losses.cross_fitting import CrossFittedBaseline, cross_fit
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.table import RCTTable
from lightning_budget.training.data import trial_data
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.objective.credibility import paying_rows_of
from lightning_budget.training.objective.gradients import gradient_angle
from lightning_budget.training.objective.journal import log_numbers, logs_this_step, numbers_of, warn
from lightning_budget.training.objective.progress import epochs_done, epochs_of_run
from lightning_budget.training.objective.randomness import Purpose, generator_for, same_random_numbers
from lightning_budget.training.objective.ranks import gather_batch, part_of_rank, sum_over_ranks
from lightning_budget.training.objective.refresh import (
    idle_budgets,
    measure_goal,
    sample_of,
    share_of_changes,
    told_where,
    treatments_at,
)
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.objective.source import Source
from lightning_budget.training.objective.targets import Targets
from lightning_budget.training.objective.warm_start import load_warm_start, warm_start_path
from lightning_budget.training.predict import predict_batches

OutcomeModel = Literal["own", "cross_fitted"]


class BudgetObjective(L.Callback):
    """Add the marketing goal to the loss, after a two-stage warm start.

    While the goal is active, ``weight · R / value scale`` joins the loss of every batch: one scalar, one backward. Its
    multipliers, and whatever else its switches need of more than a batch, are measured anew from the source: the whole
    training split, predicted at the start of every epoch or every few steps; or batches, whose own multipliers are
    noise where they are small.

    Logged under ``objective/``, per budget: ``multiplier``, ``rate`` (κ: λ, μ or 0), ``spread``, and ``changed``, the
    share of users whose treatment is another one than before. With the whole split as source that is at every refresh,
    and ``changed`` counts up to 65,536 of its users since the last one; with batches it is at the trainer's logging
    steps, and ``changed`` counts users of the batch whom the multipliers of the step before would treat otherwise. At
    logging steps also ``weight``, ``width`` (in units of the spread), ``gradient_goal``, ``gradient_prediction`` and
    ``gradient_cosine``, see :func:`~lightning_budget.training.objective.gradients.gradient_angle`.

    The checkpoint carries everything that a resumed run needs to go on bit for bit, and none is written of weights
    that are not finite.

    Args:
        regularizer: the goal and its gradient estimator.
        targets: budgets or multipliers.
        schedule: warm start, weight and annealing.
        source: of the multipliers.
        outcome_model: baseline of ``doubly_robust``: the model's ``own`` predictions held constant, or ``cross_fitted``
            ridge regressions, see :func:`~lightning_budget.losses.cross_fitting.cross_fit`.
        warm_start_ckpt: weights to start from, of a run with the same data and model.

    Raises:
        InputError: for switches that exclude each other, or a checkpoint that is not there.
    """

    def __init__(
        self,
        regularizer: BudgetRegularizer,
        targets: Targets | None = None,
        schedule: Schedule | None = None,
        source: Source | None = None,
        outcome_model: OutcomeModel = "own",
        warm_start_ckpt: str | Path | None = None,
    ) -> None:
        self.regularizer = regularizer
        self.targets = targets or Targets()
        self.schedule = schedule or Schedule()
        self.source = source or Source()
        if outcome_model not in get_args(OutcomeModel):
            raise InputError(
                f"objective.outcome_model={outcome_model!r}", ", ".join(get_args(OutcomeModel)), "choose one of them"
            )
        if self.targets.multipliers is not None and regularizer.form.form == "primal":
            raise InputError(
                "objective.multipliers with form=primal", "budgets", "set objective.form=dual, or objective.budgets"
            )
        self.outcome_model = outcome_model
        self.warm_start_ckpt = warm_start_path(warm_start_ckpt)
        self.state: GoalState | None = None
        self.baseline: CrossFittedBaseline | None = None
        self._baseline_state: dict[str, Tensor] | None = None
        self._refreshes = 0
        self._at: tuple[int, int] | None = None  # epoch and step of the last refresh
        self._treatments: Tensor | None = None
        self._warned = False
        self._epochs_done, self._paying_rows = 0.0, math.inf
        self._module: BudgetModule | None = None

    @property
    def multipliers(self) -> Tensor | None:
        """Those in force, ``[B]``; ``None`` during the warm start."""
        return None if self.state is None else self.state.multiplier

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if self.source.every_n_steps is not None and getattr(trainer.strategy, "_pipeline", False):
            raise InputError(
                "objective.refresh_every_n_steps with sharding.pipeline=true",
                "one of the two: a refresh would look up tables while a batch is under way",
                "refresh every epoch, or set sharding.pipeline=false",
            )
        self._module = cast("BudgetModule", pl_module)
        self._module.objective_terms["goal"] = self.goal

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._module is not None:
            self._module.objective_terms.pop("goal", None)
            self._module = None

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the module, as Lightning tears no callback down after an error."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the weights of the warm start and fit the baseline, unless training goes on from somewhere.

        Not when fitting starts: which checkpoint is resumed is not decided by then.
        """
        if self.warm_start_ckpt is not None and not trainer.ckpt_path and trainer.global_step == 0:
            load_warm_start(self.warm_start_ckpt, trainer, pl_module)
        module, data = cast("BudgetModule", pl_module), trial_data(trainer)
        table = data.train
        if self.schedule.prior_rows:
            self._paying_rows = paying_rows_of(data)
        if self.state is not None:
            self.state = self.state.to(module.device, torch.float32)
        if self.outcome_model != "cross_fitted" or self.regularizer.form.weighting != "doubly_robust":
            return
        if getattr(data, "train_is_sample", False):
            raise InputError(
                f"objective.outcome_model=cross_fitted with {len(table):,} rows in memory of a larger training split",
                "own, or a training split in memory: the baseline has to know each row's fold",
                "raise data.sample_rows, or set objective.outcome_model=own",
            )
        if self._baseline_state is None:
            part = part_of_rank(len(table))
            rows = range(part.start, part.stop)
            fitted = cross_fit(table, module.schema, module.statistics, reduce=sum_over_ranks, rows=rows)
            self._baseline_state = fitted.state_dict()
        else:
            # A fit over another number of ranks would differ in its last bits.
            fitted = CrossFittedBaseline.from_state(self._baseline_state, table.user)
        self.baseline = fitted.to(module.device)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Measure the goal on the whole training split, where that is due."""
        # Lightning's count of batches is still that of the epoch before.
        self._epochs_done = float(trainer.current_epoch)
        self._refresh_if_due(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: RCTBatch, batch_idx: int
    ) -> None:
        """As at the start of an epoch, which a run that is resumed inside one does not see."""
        self._epochs_done = epochs_done(trainer, batch_idx)
        self._refresh_if_due(trainer)

    def _refresh_if_due(self, trainer: L.Trainer) -> None:
        epoch = trainer.current_epoch
        if self.schedule.is_active(epoch) and self.source.is_due(self._at, epoch, trainer.global_step):
            with told_where(trainer.global_step):
                self._refresh(trainer)

    def goal(self, batch: RCTBatch, prediction: ResponsePrediction) -> Tensor | None:
        """``weight · R / value scale`` of a batch, ``None`` during the warm start."""
        assert self._module is not None
        module, trainer = self._module, self._module.trainer
        if not self.schedule.is_active(trainer.current_epoch):
            return None
        model = None if self.baseline is None else self.baseline.predict(batch)
        logs = logs_this_step(trainer)
        if self.source.name != "full":
            with told_where(trainer.global_step):
                self._refresh_from_batch(batch, prediction, model, logs)
        state = self.state
        assert state is not None
        weight = self.schedule.weight_at(self._epochs_done, self._paying_rows)
        factor = self._width_factor(trainer)
        scale = weight / module.statistics.value_scale

        def term(p: ResponsePrediction) -> Tensor:
            generator = self._generator("term", module.global_rank, module.device)
            unit = module.statistics.weight_mean
            return scale * self.regularizer(batch, p, state, model, factor, generator, unit)

        if logs:
            scales = module.statistics.value_scale, module.statistics.cost_scale
            found = gradient_angle(prediction, lambda p: module.prediction_losses(batch, p).mean(), term, scales)
            names = ("gradient_goal", "gradient_prediction", "gradient_cosine")
            numbers = {"weight": weight, "width": factor * self.regularizer.estimator.width}
            log_numbers(trainer, {**numbers, **dict(zip(names, found.tolist(), strict=True))})
        return term(prediction)

    def _refresh(self, trainer: L.Trainer) -> None:
        assert self._module is not None
        module, data = self._module, trial_data(trainer)
        table = data.train
        assert module.net is not None
        with same_random_numbers(module.device), module.net.as_in_training():
            prediction = predict_batches(module, data.table_dataloader(table), len(table), module.device)
        state = measure_goal(
            self.regularizer,
            prediction,
            table,
            self._budgets(),
            self.targets.multipliers,
            model=self._table_baseline(table),
            width_factor=self._width_factor(trainer),
            generator=self._generator("refresh", module.global_rank, prediction.value.device),
            part=part_of_rank(len(table)),
            reduce=sum_over_ranks,
        )
        self._take(state, prediction)
        self._at = (trainer.current_epoch, trainer.global_step)
        before, self._treatments = self._treatments, treatments_at(sample_of(prediction), state.multiplier)
        log_numbers(trainer, numbers_of(state, self.targets.names, share_of_changes(before, self._treatments)))

    def _refresh_from_batch(
        self, batch: RCTBatch, prediction: ResponsePrediction, model: ResponsePrediction | None, logs: bool
    ) -> None:
        assert self._module is not None
        trainer, before = self._module.trainer, self.state
        everyone, outcomes, base = gather_batch(batch, prediction, model)
        state = measure_goal(
            self.regularizer,
            everyone,
            outcomes,
            self._budgets(),
            self.targets.multipliers,
            model=base,
            width_factor=self._width_factor(trainer),
            generator=self._generator("batch", 0, everyone.value.device),
        )
        if self.source.name == "running" and before is not None:
            state = before.blend(state, self.source.momentum)
        self._take(state, everyone)
        if logs:
            treatments = None if before is None else treatments_at(everyone, before.multiplier)
            changed = share_of_changes(treatments, treatments_at(everyone, state.multiplier))
            log_numbers(trainer, numbers_of(state, self.targets.names, changed))

    def _take(self, state: GoalState, prediction: ResponsePrediction) -> None:
        assert self._module is not None
        self.state = state.to(self._module.device, torch.float32)
        self._refreshes += 1
        if not self._warned and self.targets.multipliers is None:
            text = idle_budgets(state, prediction)
            if text is not None:
                self._warned = True
                warn(self._module.trainer, "objective.budgets", text)

    def _budgets(self) -> Tensor | None:
        assert self._module is not None
        return self.targets.budgets_at(self._refreshes, self._module.statistics.free_spend)

    def _table_baseline(self, table: RCTTable) -> Any:
        if self.baseline is None:
            return None
        on_host = self.baseline.to("cpu")
        return lambda cut: on_host.predict(table.batch(torch.arange(cut.start, cut.stop)))

    def _width_factor(self, trainer: L.Trainer) -> float:
        return self.schedule.width_at(self._epochs_done, epochs_of_run(trainer))

    def _generator(self, purpose: Purpose, rank: int, device: torch.device) -> torch.Generator | None:
        assert self._module is not None
        seed, step = self._module.hparams["seed"], self._module.trainer.global_step
        return generator_for(self.regularizer.estimator, seed, step, rank, purpose, device)

    def state_dict(self) -> dict[str, Any]:
        return {
            "goal": None if self.state is None else self.state.tensors(),
            "baseline": self._baseline_state,
            "refreshes": self._refreshes,
            "at": self._at,
            "treatments": self._treatments,
            "warned": self._warned,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._baseline_state = state_dict["baseline"]
        self._refreshes, self._warned = state_dict["refreshes"], state_dict["warned"]
        goal = state_dict["goal"]
        if goal is None or len(goal["multiplier"]) != len(self.targets.names):
            # Of the warm start, or of other targets: they are measured at the next step.
            return
        self.state = GoalState.from_tensors(goal)
        self._at = None if state_dict["at"] is None else tuple(state_dict["at"])
        self._treatments = state_dict["treatments"]


__all__ = ["BudgetObjective", "OutcomeModel", "Targets"]
