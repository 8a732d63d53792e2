"""The callback that turns a prediction model into one trained for allocation under a budget."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import lightning as L
import numpy as np
import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.budget_regularizer import BudgetRegularizer
from lightning_budget.losses.budgets import Budgets, FixedBudgets, budgets_per_user
from lightning_budget.losses.cross_fitting import CrossFittedBaseline, cross_fit
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.training.data import trial_data
from lightning_budget.training.export import checkpoint_exists
from lightning_budget.training.fit_check import check_same_model
from lightning_budget.training.module import BudgetModule
from lightning_budget.training.objective.gradients import gradient_angle
from lightning_budget.training.objective.refresh import (
    Source,
    check_multipliers,
    free_optimum_spend,
    gather_batch,
    measure_goal,
    part_of_rank,
    same_random_numbers,
    sample_of,
    sum_over_ranks,
    treatments_at,
)
from lightning_budget.training.objective.schedule import Schedule
from lightning_budget.training.predict import predict_batches

OutcomeModel = Literal["own", "cross_fitted"]


@dataclass(frozen=True)
class Targets:
    """At what the goal is measured: budgets, or multipliers of a dual goal.

    Attributes:
        budgets: whose multipliers are solved at every refresh.
        multipliers: taken as they are instead, value per currency.
    """

    budgets: Budgets = field(default_factory=lambda: FixedBudgets((0.05, 0.1, 0.2, 0.3, 0.5)))
    multipliers: tuple[float, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        if self.multipliers is None:
            return self.budgets.names
        return tuple(f"lambda{m:g}" for m in self.multipliers)


class BudgetObjective(L.Callback):
    """Add the marketing goal to the loss, after a two-stage warm start.

    While the goal is active, ``weight · R / value scale`` joins the loss of every batch: one scalar, one backward. Its
    multipliers, and whatever else its switches need of more than a batch, are measured anew from the source: the whole
    training split, predicted at the start of every epoch or every few steps; or batches, whose own multipliers are
    noise where they are small.

    Logged at every refresh, under ``objective/``: ``multiplier``, ``rate`` (κ: λ, μ or 0) and ``spread`` at each
    budget, ``changed``, the fraction of (up to 65,536) training users whose treatment is another one than at the last
    refresh; and at the trainer's logging steps ``weight``, ``width`` (in units of the spread), ``gradient_goal``,
    ``gradient_prediction`` and ``gradient_cosine``, see
    :func:`~lightning_budget.training.objective.gradients.gradient_angle`.

    The checkpoint carries everything that a resumed run needs to go on bit for bit.

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
        if self.targets.multipliers is not None:
            check_multipliers(self.targets.multipliers)
            if regularizer.form.form == "primal":
                raise InputError(
                    "objective.multipliers with form=primal", "budgets", "set objective.form=dual, or objective.budgets"
                )
        if warm_start_ckpt is not None and not checkpoint_exists(warm_start_ckpt):
            raise InputError(
                f"objective.warm_start_ckpt={str(warm_start_ckpt)!r} is not there",
                "a checkpoint of this library",
                "give the best.ckpt of a two-stage run",
            )
        self.outcome_model = outcome_model
        self.warm_start_ckpt = None if warm_start_ckpt is None else Path(warm_start_ckpt)
        self.state: GoalState | None = None
        self.baseline: CrossFittedBaseline | None = None
        self._baseline_state: dict[str, Tensor] | None = None
        self._refreshes = 0
        self._at: tuple[int, int] | None = None  # epoch and step of the last refresh
        self._treatments: Tensor | None = None
        self._warned = False
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
        if stage == "fit":
            cast("BudgetModule", pl_module).objective_terms.pop("goal", None)
            self._module = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the weights of the warm start, unless a run is resumed, and fit the baseline."""
        module = cast("BudgetModule", pl_module)
        if self.warm_start_ckpt is not None and not trainer.ckpt_path:
            check_same_model(self.warm_start_ckpt, module)
            strategy = trainer.strategy
            load = getattr(strategy, "load_weights", None)
            if load is not None:
                load(self.warm_start_ckpt)
            else:
                strategy.load_model_state_dict(strategy.load_checkpoint(self.warm_start_ckpt))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.outcome_model != "cross_fitted" or self.regularizer.form.weighting != "doubly_robust":
            return
        module, table = cast("BudgetModule", pl_module), trial_data(trainer).train
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
        """Measure the goal on the whole training split."""
        epoch = trainer.current_epoch
        if self.source.name == "full" and self.schedule.is_active(epoch) and (not self._at or self._at[0] != epoch):
            self._refresh(trainer)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: RCTBatch, batch_idx: int
    ) -> None:
        every, step = self.source.every_n_steps, trainer.global_step
        if every and self.state is not None and self._at and step >= self._at[1] + every:
            self._refresh(trainer)

    def goal(self, batch: RCTBatch, prediction: ResponsePrediction) -> Tensor | None:
        """``weight · R / value scale`` of a batch, ``None`` during the warm start."""
        assert self._module is not None
        module, trainer = self._module, self._module.trainer
        if not self.schedule.is_active(trainer.current_epoch):
            return None
        model = None if self.baseline is None else self.baseline.predict(batch)
        logs = self._logs_now(trainer)
        generator = self._generator(module)
        if self.source.name != "full":
            self._refresh_from_batch(batch, prediction, model, generator, logs)
        assert self.state is not None
        weight = self.schedule.weight_at(_epochs_done(trainer))
        factor = self._width_factor(trainer)
        scale = weight / module.statistics.value_scale

        def term(p: ResponsePrediction) -> Tensor:
            assert self.state is not None
            return scale * self.regularizer(batch, p, self.state, model, factor, generator)

        if logs:
            numbers = {"weight": weight, "width": factor * self.regularizer.estimator.width}
            scales = module.statistics.value_scale, module.statistics.cost_scale
            found = gradient_angle(prediction, lambda p: module.prediction_losses(batch, p).mean(), term, scales)
            names = ("gradient_goal", "gradient_prediction", "gradient_cosine")
            self._log({**numbers, **dict(zip(names, found.tolist(), strict=True))})
            generator = self._generator(module)
        return term(prediction)

    def _refresh(self, trainer: L.Trainer) -> None:
        assert self._module is not None
        module, data = self._module, trial_data(trainer)
        table = data.train
        with same_random_numbers(module.device):
            prediction = predict_batches(module, data.table_dataloader(table), len(table), module.device)
        budgets = self._budgets()
        state = measure_goal(
            self.regularizer,
            prediction,
            table,
            budgets,
            self.targets.multipliers,
            model=self._table_baseline(table),
            width_factor=self._width_factor(trainer),
            generator=self._generator(module, torch.device("cpu")),
            part=part_of_rank(len(table)),
            reduce=sum_over_ranks,
        )
        self._warn_of_budgets_above(state, prediction)
        self._set(state.to(module.device, torch.float32))
        self._at = (trainer.current_epoch, trainer.global_step)
        sample = treatments_at(sample_of(prediction), state.multiplier)
        before, self._treatments = self._treatments, sample
        self._log(self._numbers(None if before is None else (sample != before).float().mean(dim=1)))

    def _refresh_from_batch(
        self,
        batch: RCTBatch,
        prediction: ResponsePrediction,
        model: ResponsePrediction | None,
        generator: torch.Generator | None,
        logs: bool,
    ) -> None:
        assert self._module is not None
        everyone, outcomes, base = gather_batch(batch, prediction, model)
        factor = self._width_factor(self._module.trainer)
        how: dict[str, Any] = {"model": base, "width_factor": factor, "generator": generator}
        budgets = self._budgets()
        state = measure_goal(self.regularizer, everyone, outcomes, budgets, self.targets.multipliers, **how)
        self._warn_of_budgets_above(state, everyone)
        before = self.state
        if self.source.name == "running" and before is not None:
            state = before.blend(state, self.source.momentum)
        self._set(state)
        if logs:
            changed = None
            if before is not None:
                changed = treatments_at(everyone, before.multiplier) != treatments_at(everyone, state.multiplier)
                changed = changed.float().mean(dim=1)
            self._log(self._numbers(changed))

    def _set(self, state: GoalState) -> None:
        self.state = state
        self._refreshes += 1

    def _budgets(self) -> Tensor | None:
        if self.targets.multipliers is not None:
            return None
        assert self._module is not None
        return budgets_per_user(self.targets.budgets, self._refreshes, self._module.statistics.free_spend)

    def _table_baseline(self, table: Any) -> Any:
        if self.baseline is None:
            return None
        on_host = self.baseline.to("cpu")
        return lambda cut: on_host.predict(table.batch(torch.arange(cut.start, cut.stop)))

    def _warn_of_budgets_above(self, state: GoalState, prediction: ResponsePrediction) -> None:
        if self._warned or self.targets.multipliers is not None or bool((state.multiplier > 0).all()):
            return
        self._warned = True
        idle = [f"{b:g}" for b in state.budget[state.multiplier == 0].tolist()]
        warnings.warn(
            f"budgets of {', '.join(idle)} per user are above the {free_optimum_spend(prediction):g} that the model "
            "would spend if money cost nothing: their multiplier is 0 and they bind nothing",
            stacklevel=2,
        )

    def _numbers(self, changed: Tensor | None) -> dict[str, float]:
        assert self.state is not None
        columns = {"multiplier": self.state.multiplier, "rate": self.state.rate, "spread": self.state.spread}
        if changed is not None:
            columns["changed"] = changed
        return {
            f"{name}@{target}": x
            for name, column in columns.items()
            for target, x in zip(self.targets.names, column.tolist(), strict=True)
        }

    def _log(self, numbers: dict[str, float]) -> None:
        """To the loggers directly: a refresh may happen where a module cannot log, and is the same on every rank."""
        assert self._module is not None
        trainer = self._module.trainer
        named = {f"objective/{name}": x for name, x in numbers.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(x) for name, x in named.items()})

    def _logs_now(self, trainer: L.Trainer) -> bool:
        every = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # the trainer's arguments
        return bool(every) and (trainer.global_step + 1) % every == 0

    def _width_factor(self, trainer: L.Trainer) -> float:
        return self.schedule.width_at(_epochs_done(trainer), _epochs(trainer))

    def _generator(self, module: BudgetModule, device: torch.device | None = None) -> torch.Generator | None:
        """Of this step and rank alone, so that a resumed run draws what it would have drawn."""
        if not self.regularizer.estimator.is_random:
            return None
        entropy = [module.hparams["seed"], module.trainer.global_step, module.global_rank, device is not None]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        return torch.Generator(device or module.device).manual_seed(seed)

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
        goal = state_dict["goal"]
        self.state = None if goal is None else GoalState.from_tensors(goal)
        self._baseline_state = state_dict["baseline"]
        self._refreshes, self._warned = state_dict["refreshes"], state_dict["warned"]
        self._at = None if state_dict["at"] is None else tuple(state_dict["at"])
        self._treatments = state_dict["treatments"]


def _epochs(trainer: L.Trainer) -> float:
    """Length of the run in epochs."""
    epochs = math.inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs)  # type: ignore[arg-type]
    if trainer.max_steps != -1:
        epochs = min(epochs, trainer.max_steps / trainer.num_training_batches)
    return epochs


def _epochs_done(trainer: L.Trainer) -> float:
    done = trainer.fit_loop.epoch_loop.batch_idx if trainer.fit_loop.epoch_loop.batch_idx > 0 else 0
    return trainer.current_epoch + done / trainer.num_training_batches


__all__ = ["BudgetObjective", "OutcomeModel", "Targets"]
