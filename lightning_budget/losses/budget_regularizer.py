"""The marketing goal as a regularizer: what the model's own allocation earns, at a set of budgets or multipliers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.estimators import GradientEstimator
from lightning_budget.losses.fused_goal import can_fuse, fused_goal
from lightning_budget.losses.gains import ArmsFirst, Outcomes, Rows, Weighting, gains
from lightning_budget.losses.goal_state import GoalState
from lightning_budget.losses.measure import (
    ModelPrediction,
    Piece,
    Reduce,
    arm_residuals,
    exchange_rate,
    no_constants,
    pieces,
    policy_constants,
    score_spread,
)
from lightning_budget.losses.surrogate import with_gradient

Form = Literal["dual", "primal"]
CostTerm = Literal["none", "lambda", "mu"]
Centring = Literal["none", "centred"]
WidthUnit = Literal["spread", "value"]

LARGEST_MULTIPLIER = 1e15
"""Of a budget that only just covers the cheapest arms: larger ones times a gain at them may overflow in float32."""

PIECE = 1 << 13
"""Users on a CPU whose gradient is estimated at a time."""


@dataclass(frozen=True)
class GoalForm:
    """The switches of the marketing goal, each free of the others.

    Attributes:
        form: ``dual``, value net of cost at a set of multipliers; or ``primal``, value at a set of budgets, with
            ``κ (b − C)`` for what the smoothed spend C misses them by.
        cost_term: κ, what a unit of cost counts for in the gradient ``V_z − κ C_z``: ``none`` 0; ``lambda`` λ; ``mu``
            the implicit derivative at a fixed budget, see :func:`~lightning_budget.losses.measure.exchange_rate`.
        weighting: of observed outcomes, see :func:`~lightning_budget.losses.gains.gains`.
        baseline: ``centred`` takes each arm's mean residual out of what is weighted; the estimate's mean stays and its
            variance falls. ``poststratified`` always is.
        entropy: weight e of the entropy of the smoothed allocation: gains become ``g − e a`` (a held constant). With
            1, correct predictions are a fixed point; with 0 the goal also rewards exaggerating them.
        width_unit: of the estimator's width, the ``spread`` of the scores or one unit of ``value``.

    Raises:
        InputError: for a switch that there is not.
    """

    form: Form = "dual"
    cost_term: CostTerm = "lambda"
    weighting: Weighting = "doubly_robust"
    baseline: Centring = "none"
    entropy: float = 1.0
    width_unit: WidthUnit = "spread"

    def __post_init__(self) -> None:
        allowed = {"form": Form, "cost_term": CostTerm, "weighting": Weighting, "baseline": Centring}
        for name, kind in {**allowed, "width_unit": WidthUnit}.items():
            if (given := getattr(self, name)) not in get_args(kind):
                raise InputError(f"objective.{name}={given!r}", ", ".join(get_args(kind)), "choose one of the allowed")
        if not 0 <= self.entropy <= 1:
            raise InputError(f"objective.entropy={self.entropy}", "between 0 and 1", "1 keeps correct predictions")

    @property
    def has_base(self) -> bool:
        """Whether the baseline has a part that comes from the whole data."""
        return self.baseline == "centred" or self.weighting in ("hajek", "poststratified")


class BudgetRegularizer:
    """The marketing goal, smoothed by a gradient estimator so that it has a gradient.

    For each multiplier λ_b, with scores ``a_ij = v̂_ij − λ_b ĉ_ij``, the estimator's smoothed allocation ``q_i`` and
    gains ``g_ij`` of an arm net of κ_b times its cost::

        R = (1/B) Σ_b (1/N) Σ_i Σ_j q_ij g_ij          (primal: + κ_b b)

    The gradient flows through q alone, at fixed λ: users do not touch each other, and the mean over a batch is the
    same for any split of it over ranks. What couples them, λ, κ and the weighting's constants, comes from the whole
    data by :meth:`measure`.

    Args:
        estimator: of the gradient.
        form: the switches.

    Sources: Yan et al. 2023, arXiv:2302.04477; Zhou et al. 2024, arXiv:2407.13664 (dual form, maximum entropy);
    Dudík, Langford, Li 2011, arXiv:1103.4601 (doubly robust).
    """

    def __init__(self, estimator: GradientEstimator, form: GoalForm | None = None) -> None:
        self.estimator, self.form = estimator, form or GoalForm()

    def __call__(
        self,
        batch: RCTBatch,
        prediction: ResponsePrediction,
        state: GoalState,
        model: ResponsePrediction | None = None,
        width_factor: float = 1.0,
        generator: torch.Generator | None = None,
        weight_mean: float = 1.0,
    ) -> Tensor:
        """The goal of one batch, to be maximised.

        Args:
            batch: N rows; prediction: ``[N, K]`` each.
            state: of :meth:`measure`, on the device of the batch.
            model: ``[N, K]`` baseline of ``doubly_robust``; ``None``: the prediction itself, held constant.
            width_factor: of the schedule; generator: of random estimators.
            weight_mean: mean sample weight of the training data, the unit of the batch's.

        Returns:
            Scalar, value units per user, float32 or more; a mean over rows.
        """
        with _without_autocast(prediction):
            own = ArmsFirst.of(prediction)
            base = own if model is None else ArmsFirst.of(model)
            state = state.to(own.value.device, own.value.dtype)
            terms = len(state.multiplier) * len(batch) * (1.0 if batch.weight is None else weight_mean)
            about = (batch, own, base, state, width_factor)
            fused = batch.weight is None and can_fuse(self.estimator, own.value)
            total, slopes = self._fused(*about) if fused else self._in_pieces(*about, generator)
            goal, slopes = total / terms, slopes.div_(terms)
            if self.form.form == "primal":
                goal = goal + (state.rate * state.budget).mean()
            return with_gradient(prediction.value, prediction.cost, goal, *slopes.transpose(1, 2))

    def _fused(
        self, batch: RCTBatch, own: ArmsFirst, base: ArmsFirst, state: GoalState, width_factor: float
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`_in_pieces`."""
        width = self.estimator.width * width_factor * state.spread
        rows = Rows.of(batch, slice(None))
        return fused_goal(rows, own, base, state, width, self.form.weighting, self.form.entropy)

    def _in_pieces(
        self,
        batch: RCTBatch,
        own: ArmsFirst,
        base: ArmsFirst,
        state: GoalState,
        width_factor: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Sum of R over users and multipliers, and its gradient by value and cost, ``[2, K, N]``."""
        # ∂a/∂v̂ = 1 and ∂a/∂ĉ = −λ, both sums over multipliers in one product.
        chain = torch.stack([torch.ones_like(state.multiplier), -state.multiplier])
        total, slopes = own.value.new_zeros(()), own.value.new_empty(2, *own.value.shape)
        for cut in self._cuts(own.value):
            rows, part = Rows.of(batch, cut), (own.cut(cut), base.cut(cut))
            value, gradient = self._part(rows, *part, state, width_factor, generator)
            total += value
            slopes[:, :, cut] = (chain @ gradient.flatten(1)).view(2, *part[0].value.shape)
        return total, slopes

    def _cuts(self, value: Tensor) -> list[slice]:
        users = value.shape[1]
        # On a CPU few users at a time: buffers that outgrow the cache, and go back to the system each step, cost more.
        size = PIECE if value.device.type == "cpu" and not self.estimator.is_global else max(users, 1)
        return [slice(i, i + size) for i in range(0, users, size)]

    def _part(
        self,
        rows: Rows,
        own: ArmsFirst,
        base: ArmsFirst,
        state: GoalState,
        width_factor: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Of some users the sum of R over users and multipliers, and its gradient by scores ``[B, K, n]``."""
        form, scores = self.form, own.scores(state.multiplier)
        shares = torch.ones_like(state.rate), -state.rate
        gain = gains(rows, form.weighting, state.constants, base, *shares, has_base=form.has_base)
        width = self.estimator.width * width_factor * state.spread
        if form.entropy:
            gain.sub_(scores, alpha=form.entropy)
        if rows.weight is not None:
            gain.mul_(rows.weight.to(gain))
        found = self.estimator.estimate(scores, gain, width, rows.treatment, generator)
        value = found.value.sum()
        if form.entropy:
            score = found.score
            if score is None or rows.weight is not None:
                chosen = self.estimator.assignment(scores, width, generator) * scores
                score = (chosen if rows.weight is None else chosen * rows.weight.to(chosen)).sum(dim=(1, 2))
            value = value + form.entropy * score.sum()
        return value, found.gradient

    @torch.no_grad()
    def measure(
        self,
        prediction: ResponsePrediction,
        outcomes: Outcomes,
        multipliers: Tensor,
        budgets: Tensor | None = None,
        model: ModelPrediction = None,
        width_factor: float = 1.0,
        generator: torch.Generator | None = None,
        part: slice | None = None,
        reduce: Reduce | None = None,
    ) -> GoalState:
        """What the goal needs of the whole data, for these multipliers.

        Args:
            prediction: ``[N, K]`` each; outcomes: the N rows, on the same device.
            multipliers: ``[B]``, value per currency; budgets: ``[B]`` that they meet, currency per user.
            model: ``[N, K]`` baseline of ``doubly_robust``, as in the call.
            width_factor: of the schedule; generator: of random estimators.
            part: of the rows, where each rank measures one, with reduce: sums over ranks.

        Returns:
            In the type of the predictions, at least float32; multipliers above 1e15 are held there.

        Raises:
            InputError: if the form is primal and there are no budgets.
        """
        if budgets is None and self.form.form == "primal":
            raise InputError(
                "multipliers without budgets and form=primal",
                "budgets",
                "set objective.form=dual, or objective.budgets",
            )
        with _without_autocast(prediction):
            kind = torch.promote_types(prediction.value.dtype, torch.float32)
            multiplier = multipliers.to(prediction.value.device, kind).clamp(max=LARGEST_MULTIPLIER)
            treatments, form = prediction.value.shape[1], self.form
            if form.width_unit == "spread":
                spread = score_spread(prediction, multiplier, part, reduce).to(kind)
            else:
                spread = torch.ones_like(multiplier)
            width = self.estimator.width * width_factor * spread

            def data() -> Iterator[Piece]:
                return pieces(prediction, outcomes, model, part)

            smoothing = (self.estimator, form.weighting)
            constants = None
            if form.baseline == "centred" and form.weighting != "poststratified":
                constants = arm_residuals(data(), multiplier, treatments, form.weighting == "doubly_robust", reduce)
            if form.weighting in ("hajek", "poststratified"):
                about = (multiplier, width, treatments, generator, reduce, constants)
                constants = policy_constants(data(), *smoothing, *about)
            constants = constants or no_constants(multiplier, treatments)
            rate = {"none": torch.zeros_like(multiplier), "lambda": multiplier}.get(form.cost_term)
            if rate is None:
                rate = exchange_rate(data(), *smoothing, constants, multiplier, width, generator, reduce)
            budget = torch.full_like(multiplier, torch.nan) if budgets is None else budgets.to(multiplier)
            bases = (constants.value_base, constants.cost_base, constants.factor)
            return GoalState(budget, multiplier, spread, rate, *bases)


def _without_autocast(prediction: ResponsePrediction) -> torch.autocast:
    """Sums over arms are matrix products, which autocast would round to a few digits."""
    return torch.autocast(prediction.value.device.type, enabled=False)
