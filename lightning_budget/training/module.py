"""The LightningModule: prediction loss plus whatever objective terms callbacks contribute, in one scalar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.choice import LossChoice
from lightning_budget.losses.response import sample_weighted
from lightning_budget.models.learner import Learner, LearnerOutput
from lightning_budget.models.learners import decided_config, model_options
from lightning_budget.models.managed_collisions import ManagedIds
from lightning_budget.models.registry import build_model
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.checkpoint import OBSERVED
from lightning_budget.training.data import trial_data
from lightning_budget.training.finite import FiniteGuard, refuse_broken_weights
from lightning_budget.training.given_rows import start_rows_anew
from lightning_budget.training.optimizers import decay_groups, step_in_backward
from lightning_budget.training.optimizers import embedding_optimizer as get_embedding_optimizer
from lightning_budget.training.prediction_loss import PredictionLoss
from lightning_budget.training.sharding import materialize_tables
from lightning_budget.training.versions import versions

SCHEDULES = ("constant", "cosine")

MANAGED_IDS = "managed_ids"
"""Top-level checkpoint key of managed ids that were counted and have no row yet."""
FIRST_STEP = "first_step"
"""Top-level checkpoint key of what a two-step fit starts from."""

ObjectiveTerm = Callable[[RCTBatch, ResponsePrediction], Tensor | None]


class BudgetModule(L.LightningModule):
    """Fit value and cost of every treatment; callbacks add what the predictions are for.

    ``loss = prediction loss + Σ learner's own losses − Σ_terms term``: one scalar and one backward, because a second
    backward would be a second step of the optimizers that run inside it.

    Args:
        schema, statistics: of the data, as ``to_dict()`` gives them, so that a checkpoint stands alone.
        model: name and arguments of the model, see :data:`lightning_budget.models.MODELS`.
        lr: of AdamW over the dense parameters; embedding_lr: of the tables.
        weight_decay: decoupled, of the dense parameters' weights, see
            :func:`~lightning_budget.training.optimizers.decay_groups`.
        schedule: ``constant``, or ``cosine`` decay of both rates to zero over the run.
        embedding_optimizer: of the tables, see :data:`~lightning_budget.training.optimizers.EMBEDDING_OPTIMIZERS`.
        seed: start of the weights and of every epoch's random numbers.
        loss: that predictions are fitted by, see :class:`~lightning_budget.losses.choice.LossChoice`; ``None``: the
            factual one.

    Raises:
        InputError: for a rate, schedule or size out of range, or another loss.
    """

    def __init__(
        self,
        schema: Mapping[str, Any],
        statistics: Mapping[str, Any],
        model: Mapping[str, Any],
        lr: float = 1e-3,
        embedding_lr: float = 0.01,
        weight_decay: float = 0.0,
        schedule: str = "constant",
        embedding_optimizer: str = "rowwise_adagrad",
        seed: int = 0,
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        _check(model, schedule, {"lr": lr, "embedding_lr": embedding_lr, "weight_decay": weight_decay})
        get_embedding_optimizer(embedding_optimizer)
        self.schema = DataSchema.from_dict(dict(schema))
        # Before they are saved: a checkpoint keeps its heads whatever data it goes on with.
        model = decided_config(model, self.schema, statistics)
        self.save_hyperparameters()
        self.statistics = DataStatistics.from_dict(dict(statistics))
        self.objective_terms: dict[str, ObjectiveTerm] = {}
        self._finite = FiniteGuard()
        self.prediction_loss = PredictionLoss(LossChoice.of(loss or {}), self.schema, self.statistics)
        self.arm_share: Tensor
        self.register_buffer("arm_share", torch.tensor(self.statistics.arm_share), persistent=False)
        self.net: Learner | None = None

    def configure_model(self) -> None:
        """Build the network, the same on every rank.

        Under :class:`~lightning_budget.training.strategy.TorchRecStrategy` its tables are described and not allocated;
        without a trainer, or in one process of another strategy, they lie in ordinary memory with the same start.

        Raises:
            InputError: under another strategy of several processes, which would leave the tables' copies apart.
        """
        if self.net is not None:
            return
        strategy = None if self._trainer is None else self.trainer.strategy
        sharded = getattr(strategy, "shards_tables", False)
        if self.schema.sparse and strategy is not None and not sharded and self.trainer.world_size > 1:
            raise InputError(
                f"trainer.strategy={type(strategy).__name__} over {self.trainer.world_size} processes with embedding "
                "tables",
                "torchrec",
                'pass strategy="torchrec"',
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.hparams["seed"])
            self.net = build_model(self.hparams["model"], self.schema, self.statistics, "meta")
        if not sharded:
            materialize_tables(self.net, self.hparams["seed"])
        if self.net.sparse_arch is not None:
            step_in_backward(self.net.sparse_arch, self.hparams["embedding_lr"], self.hparams["embedding_optimizer"])

    def forward(self, batch: RCTBatch, whole: bool = False) -> ResponsePrediction | LearnerOutput:
        """``[N, K]`` value and cost; ``whole``: with what the learner's own losses need."""
        assert self.net is not None
        return self.net.outputs(batch.dense, batch.sparse) if whole else self.net(batch.dense, batch.sparse)

    def prediction_losses(
        self,
        batch: RCTBatch,
        prediction: ResponsePrediction,
        value_losses: Tensor | None = None,
        cost_losses: Tensor | None = None,
    ) -> Tensor:
        """Of each row, ``[N]``, where the loss is one of predictions; in train mode rows are the training split's.

        See :meth:`~lightning_budget.training.prediction_loss.PredictionLoss.of_prediction`.
        """
        own = value_losses, cost_losses
        return self.prediction_loss.of_prediction(batch, prediction, *own, self.arm_share, self.training)

    def _losses(self, batch: RCTBatch, output: LearnerOutput) -> Tensor:
        assert self.net is not None
        if self.prediction_loss.choice.is_direct:
            return self.prediction_loss.of_scores(batch, output, self.net, self.arm_share)
        own = self.net.value_losses(batch, output), self.net.cost_losses(batch, output)
        return self.prediction_losses(batch, output.prediction, *own)

    def _prepare_loss(self) -> None:
        """Once checkpoints are loaded, which is not yet so when fitting starts."""
        assert self.net is not None
        self.prediction_loss.check(self.net, bool(self.objective_terms))
        self.prediction_loss.prepare(trial_data(self.trainer), self.device)

    def on_train_start(self) -> None:
        """Fit or measure what the loss needs of the training split."""
        self._prepare_loss()

    def on_validation_start(self) -> None:
        """As when training starts: a check of validation comes before."""
        self._prepare_loss()
        assert self.net is not None
        if self.trainer.state.fn == TrainerFn.FITTING:
            # The end of an epoch comes after its validation, and validation may come inside.
            self.net.settle(whole=False)

    def on_test_start(self) -> None:
        self._prepare_loss()

    def on_train_epoch_start(self) -> None:
        """Draw this epoch's random numbers from (seed, epoch, rank): a resumed run draws what it would have drawn."""
        state = np.random.SeedSequence([self.hparams["seed"], self.current_epoch, self.global_rank]).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: RCTBatch, batch_idx: int) -> Tensor:
        if self._managed is not None and batch.sparse is not None:
            assert self.net is not None
            assert self.net.sparse_arch is not None
            start_rows_anew(self.net.sparse_arch, self._managed.observe(batch.sparse))
        assert self.net is not None
        # Through the module's own call, which the pipeline of ids hooks.
        output: LearnerOutput = self(batch, whole=True)
        prediction = output.prediction
        self.net.observe(batch, output, self.current_epoch)
        loss = self._losses(batch, output).mean()
        losses = {"prediction_loss": loss}
        for name, extra in self.net.extra_losses(batch, output).items():
            losses[name] = sample_weighted(extra, batch, self.statistics.weight_mean).mean()
            loss = loss + losses[name]
        for name, term in self.objective_terms.items():
            contribution = term(batch, prediction)
            if contribution is not None:
                loss = loss - contribution
                losses[name] = contribution
        self._finite.check(losses, self.global_step)
        self._log_losses({**losses, "loss": loss}, len(batch))
        return loss

    def _log_losses(self, losses: Mapping[str, Tensor], rows: int) -> None:
        """Means of the epoch, reduced over ranks at its end; of a step only where it is logged, in one reduction."""
        means = {f"train/{name}_epoch": loss for name, loss in losses.items()}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=rows, sync_dist=True)
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # the trainer's arguments
        if every and (self.global_step + 1) % every == 0:
            step = self.trainer.strategy.reduce(torch.stack([loss.detach() for loss in losses.values()]))
            named = zip(losses, cast(Tensor, step), strict=True)
            self.log_dict({f"train/{name}_step": loss for name, loss in named}, on_step=True, on_epoch=False)

    def validation_step(self, batch: RCTBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: RCTBatch, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, "test")

    def _evaluate(self, batch: RCTBatch, split: str) -> dict[str, Tensor]:
        assert self.net is not None
        output: LearnerOutput = self(batch, whole=True)
        prediction = output.prediction
        real = batch.row >= 0
        # Stays on the device, and in floating point: Lightning averages integers over ranks rounded down.
        rows = real.sum(dtype=torch.float64)
        losses = self._losses(batch, output)
        loss = losses.where(real, 0).sum() / rows.clamp(min=1)
        # Logged by every rank, also one with filling alone, which the others would wait for.
        self.log(f"{split}/prediction_loss", loss, batch_size=rows, sync_dist=True)  # type: ignore[arg-type]
        return {"value": prediction.value, "cost": prediction.cost}

    def predict_step(self, batch: RCTBatch, batch_idx: int) -> tuple[Tensor, Tensor, Tensor]:
        """Position in the split, value and cost of every row, filling included."""
        prediction = self(batch)
        return batch.row, prediction.value, prediction.cost

    @property
    def _managed(self) -> ManagedIds | None:
        encoder = None if self.net is None else self.net.sparse_arch
        return None if encoder is None else encoder.managed

    def on_train_epoch_end(self) -> None:
        """Let the learner use what it observed, and log that and how the tables of managed features are filled."""
        assert self.net is not None
        # Training may end inside an epoch, by max_steps or a callback.
        whole = self.trainer.is_last_batch
        settled = {f"train/user_effects/{name}": number for name, number in self.net.settle(whole).items()}
        self.log_dict(settled, on_step=False, on_epoch=True, sync_dist=True)
        if self._managed is not None:
            shares = {f"train/ids/{name}": share for name, share in self._managed.shares().items()}
            self.log_dict(shares, on_step=False, on_epoch=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what wrote the checkpoint, and write none of a model that has seen NaN."""
        self._finite.flush()
        refuse_broken_weights(self, self.global_step)
        checkpoint["versions"] = versions()
        if (first_step := self.prediction_loss.state_dict()) is not None:
            checkpoint[FIRST_STEP] = first_step
        assert self.net is not None
        if (observed := self.net.observed()) is not None:
            checkpoint[OBSERVED] = observed
        if self._managed is not None:
            checkpoint[MANAGED_IDS] = self._managed.pending()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint left off: counting managed ids, and from its first step."""
        self.prediction_loss.load_state_dict(checkpoint.get(FIRST_STEP))
        if self.net is not None:
            self.net.resume_observed(checkpoint.get(OBSERVED))
        if self._managed is not None:
            self._managed.resume(checkpoint.get(MANAGED_IDS))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(decay_groups(self, self.hparams["weight_decay"]), lr=self.hparams["lr"])
        if self.hparams["schedule"] == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise InputError(
                "model.optimizer.schedule=cosine on a run without an end",
                "trainer.max_epochs or trainer.max_steps with it",
                "set one of them, or schedule=constant",
            )
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, int(steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def _check(model: Mapping[str, Any], schedule: str, rates: Mapping[str, float]) -> None:
    if schedule not in SCHEDULES:
        raise InputError(f"model.optimizer.schedule={schedule!r}", ", ".join(SCHEDULES), "choose one of the allowed")
    for name, rate in rates.items():
        if not (math.isfinite(rate) and (rate > 0 or (name == "weight_decay" and rate == 0))):
            allowed = "0 or above" if name == "weight_decay" else "above 0"
            raise InputError(f"model.optimizer.{name}={rate:g}", allowed, "mend it")
    model_options(model)
