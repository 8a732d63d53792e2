"""The LightningModule: prediction loss plus whatever objective terms callbacks contribute, in one scalar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.response import response_losses
from lightning_budget.models.managed_collisions import ManagedIds
from lightning_budget.models.registry import build_model
from lightning_budget.models.tarnet import TARNet
from lightning_budget.schema import DataSchema
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.finite import FiniteGuard, refuse_broken_weights
from lightning_budget.training.given_rows import start_rows_anew
from lightning_budget.training.optimizers import dense_parameters, step_in_backward
from lightning_budget.training.optimizers import embedding_optimizer as get_embedding_optimizer
from lightning_budget.training.sharding import materialize_tables
from lightning_budget.training.versions import versions

SCHEDULES = ("constant", "cosine")

MANAGED_IDS = "managed_ids"
"""Top-level checkpoint key of managed ids that were counted and have no row yet."""

ObjectiveTerm = Callable[[RCTBatch, ResponsePrediction], Tensor | None]


class BudgetModule(L.LightningModule):
    """Fit value and cost of every treatment; callbacks add what the predictions are for.

    ``loss = prediction loss − Σ_terms term``: one scalar and one backward, because a second backward would be a second
    step of the optimizers that run inside it.

    Args:
        schema, statistics: of the data, as ``to_dict()`` gives them, so that a checkpoint stands alone.
        model: name and arguments of the model, see :data:`lightning_budget.models.MODELS`.
        lr: of Adam over the dense parameters; embedding_lr: of the tables.
        weight_decay: of the dense parameters.
        schedule: ``constant``, or ``cosine`` decay of both rates to zero over the run.
        embedding_optimizer: of the tables, see :data:`~lightning_budget.training.optimizers.EMBEDDING_OPTIMIZERS`.
        seed: start of the weights and of every epoch's random numbers.

    Raises:
        InputError: for a rate, schedule or size out of range.
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
    ) -> None:
        super().__init__()
        _check(model, schedule, {"lr": lr, "embedding_lr": embedding_lr, "weight_decay": weight_decay})
        get_embedding_optimizer(embedding_optimizer)
        self.save_hyperparameters()
        self.schema = DataSchema.from_dict(dict(schema))
        self.statistics = DataStatistics.from_dict(dict(statistics))
        self.objective_terms: dict[str, ObjectiveTerm] = {}
        self._finite = FiniteGuard()
        self.arm_share: Tensor
        self.register_buffer("arm_share", torch.tensor(self.statistics.arm_share), persistent=False)
        self.net: TARNet | None = None

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

    def forward(self, batch: RCTBatch) -> ResponsePrediction:
        """``[N, K]`` value and cost."""
        assert self.net is not None
        return self.net(batch.dense, batch.sparse)

    def prediction_losses(self, batch: RCTBatch, prediction: ResponsePrediction) -> Tensor:
        """Of each row, ``[N]``; see :func:`~lightning_budget.losses.response.response_losses`."""
        return response_losses(
            batch,
            prediction,
            self.arm_share,
            self.schema.value_kind,
            self.schema.cost_kind,
            self.statistics.value_scale,
            self.statistics.cost_scale,
            self.statistics.weight_mean,
        )

    def on_train_epoch_start(self) -> None:
        """Draw this epoch's random numbers from (seed, epoch, rank): a resumed run draws what it would have drawn."""
        state = np.random.SeedSequence([self.hparams["seed"], self.current_epoch, self.global_rank]).generate_state(1)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: RCTBatch, batch_idx: int) -> Tensor:
        if self._managed is not None and batch.sparse is not None:
            assert self.net is not None
            assert self.net.sparse_arch is not None
            start_rows_anew(self.net.sparse_arch, self._managed.observe(batch.sparse))
        prediction = self(batch)
        loss = prediction_loss = self.prediction_losses(batch, prediction).mean()
        losses = {"prediction_loss": prediction_loss}
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
        prediction = self(batch)
        real = batch.row >= 0
        # Stays on the device, and in floating point: Lightning averages integers over ranks rounded down.
        rows = real.sum(dtype=torch.float64)
        loss = self.prediction_losses(batch, prediction).where(real, 0).sum() / rows.clamp(min=1)
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
        """Log how the tables of managed features are filled."""
        if self._managed is not None:
            shares = {f"train/ids/{name}": share for name, share in self._managed.shares().items()}
            self.log_dict(shares, on_step=False, on_epoch=True, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record what wrote the checkpoint, and write none of a model that has seen NaN."""
        self._finite.flush()
        refuse_broken_weights(self, self.global_step)
        checkpoint["versions"] = versions()
        if self._managed is not None:
            checkpoint[MANAGED_IDS] = self._managed.pending()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting managed ids where the checkpoint left off."""
        if self._managed is not None:
            self._managed.resume(checkpoint.get(MANAGED_IDS))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(
            dense_parameters(self), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )
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
    for name in ("embedding_dim", "head_hidden", "dense_hidden", "trunk_hidden"):
        size = model.get(name, 1)
        if not size or min([size] if isinstance(size, int) else size) < 1:
            raise InputError(f"model.{name}={size}", "widths of at least 1", "raise it")
    if not 0 <= model.get("dropout", 0.0) < 1:
        raise InputError(f"model.dropout={model['dropout']:g}", "at least 0, below 1", "0 leaves every unit in")
