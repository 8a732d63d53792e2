"""The prediction loss of a run, and what it must know of the whole training split before the first step."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.losses.choice import LossChoice
from lightning_budget.losses.cross_fitting import CrossFittedBaseline, cross_fit
from lightning_budget.losses.direct_ranking import Trial, arm_factor, ranking_loss, roi_losses
from lightning_budget.losses.pseudo_outcomes import two_step_losses
from lightning_budget.losses.response import outcome_loss, response_losses, sample_weighted
from lightning_budget.models.direct_ranking import DirectRanking
from lightning_budget.models.learner import Learner, LearnerOutput
from lightning_budget.models.responses import Response
from lightning_budget.schema import DataSchema, Outcome
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.data import TrialData
from lightning_budget.training.objective.ranks import part_of_rank, sum_over_ranks


class PredictionLoss:
    """Loss of each row by the name of a :class:`~lightning_budget.losses.choice.LossChoice`.

    Args:
        choice: which; schema, statistics: of the training split.
    """

    def __init__(self, choice: LossChoice, schema: DataSchema, statistics: DataStatistics) -> None:
        self.choice, self.schema, self.statistics = choice, schema, statistics
        self._trial: Trial | None = None
        self._baseline: CrossFittedBaseline | None = None
        self._saved: dict[str, Tensor] | None = None

    def check(self, net: Learner, objective: bool) -> None:
        """Refuse a model or a goal that the loss cannot train.

        Args:
            net: of any weights; objective: whether the marketing goal is to join the loss.

        Raises:
            InputError: as :meth:`~lightning_budget.losses.choice.LossChoice.check`.
        """
        pairs = net.options.pairs if isinstance(net, DirectRanking) else None  # type: ignore[attr-defined]
        heads = (net.value_response, net.cost_response)
        own = any(type(head).losses is not Response.losses for head in heads)
        self.choice.check(pairs, own, objective)

    def prepare(self, data: TrialData, device: torch.device) -> None:
        """Measure or fit on the training split what the loss needs of it, once; every rank calls it.

        Args:
            data: of the run; device: where batches will lie.

        Raises:
            InputError: for ``drm`` over several processes, and for a two-step fit of a split larger than memory.
        """
        if self.choice.is_direct and self._trial is None:
            self._trial = self._measured(data, device)
        if self.choice.is_two_step and self._baseline is None:
            self._baseline = self._fitted(data).to(device)

    def _measured(self, data: TrialData, device: torch.device) -> Trial:
        world = dist.get_world_size() if dist.is_initialized() else 1
        if self.choice.name == "drm" and world > 1:
            raise InputError(
                f"loss=drm over {world} processes, whose ratio is that of one batch",
                "one process",
                "set trainer.devices=1, or choose another loss",
            )
        table, arms, s = data.train, self.schema.num_treatments, self.statistics
        factor = arm_factor(table.treatment, table.propensity, table.weight, arms).to(device)
        gain = sum(s.value_mean[1:]) / (arms - 1) - s.value_mean[0]
        return Trial(factor, max(gain, 1e-3 * s.value_scale), s.cost_scale, s.weight_mean)

    def _fitted(self, data: TrialData) -> CrossFittedBaseline:
        table, c = data.train, self.choice
        if getattr(data, "train_is_sample", False):
            raise InputError(
                f"loss={c.name} with {len(table):,} rows in memory of a larger training split",
                "a training split in memory: the first step has to know each row's fold",
                "raise data.sample_rows, or set loss=factual",
            )
        if self._saved is not None:
            # A fit over another number of ranks would differ in its last bits.
            return CrossFittedBaseline.from_state(self._saved, table.user)
        part = part_of_rank(len(table))
        rows = range(part.start, part.stop)
        how = {"folds": c.folds, "ridge": c.ridge, "max_categories": c.max_categories}
        fitted = cross_fit(table, self.schema, self.statistics, **how, reduce=sum_over_ranks, rows=rows)
        self._saved = fitted.state_dict()
        return fitted

    def of_prediction(
        self,
        batch: RCTBatch,
        prediction: ResponsePrediction,
        value_losses: Tensor | None,
        cost_losses: Tensor | None,
        arm_share: Tensor,
        training: bool,
    ) -> Tensor:
        """``[n]``: the factual loss, or the second step of a two-step fit.

        Args:
            batch: n rows; prediction: ``[n, K]``; value_losses, cost_losses: ``[n]``, instead of the
                factual ones.
            arm_share: ``[K]``, on their device.
            training: whether the rows are those of the training split.
        """
        s = self.statistics
        kinds: tuple[Outcome, Outcome] = (self.schema.value_kind, self.schema.cost_kind)
        scales = s.value_scale, s.cost_scale, s.weight_mean
        if self.choice.name not in ("dr", "x"):
            return response_losses(batch, prediction, arm_share, *kinds, *scales, value_losses, cost_losses)
        assert self._baseline is not None
        first = self._baseline.predict(batch) if training else self._baseline.predict_others(batch)
        return two_step_losses(batch, prediction, first, self.choice.name, arm_share, *kinds, *scales)

    def of_scores(self, batch: RCTBatch, output: LearnerOutput, net: Learner, arm_share: Tensor) -> Tensor:
        """``[n]``: the direct method's loss of scores, and the factual one of cost; see :meth:`of_prediction`."""
        assert self._trial is not None
        assert isinstance(net, DirectRanking)
        score, s = output.extra["score"], self.statistics
        if self.choice.name == "drm":
            loss = ranking_loss(batch, score, self._trial).expand(len(batch))
        else:
            loss = roi_losses(batch, score, net.reference, net.roi_scale, self._trial)
        given = output.prediction.cost.gather(1, batch.treatment.unsqueeze(1)).squeeze(1)
        cost = outcome_loss(given, batch.cost, self.schema.cost_kind, s.cost_scale)
        share = arm_share.numel() * arm_share[batch.treatment]
        return loss + sample_weighted(cost / share, batch, s.weight_mean)

    def state_dict(self) -> dict[str, Tensor] | None:
        """The first step of a two-step fit; small."""
        return self._saved

    def load_state_dict(self, state: dict[str, Tensor] | None) -> None:
        """Go on with that first step."""
        self._saved, self._baseline = state, None
