"""Sums over a whole data set that the goal needs: spread of scores, constants of a weighting, value of a currency."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.estimators import GradientEstimator
from lightning_budget.losses.gains import ArmsFirst, GainConstants, Outcomes, Rows, Weighting, gains

CHUNK = 1 << 13
"""Users at a time on a CPU: their scores at eight multipliers stay in cache."""
DEVICE_CHUNK = 1 << 18
SPREAD_FLOOR = 1e-6
"""Of the scores' size: scores that are all tied leave no spread, and a width must be above 0."""
SMALLEST_SPREAD = 1e-18
"""In value units: scores this small are zero in any unit, and a derivative by them would overflow in float32."""

ModelPrediction = ResponsePrediction | Callable[[slice], ResponsePrediction] | None
"""Baseline of ``doubly_robust`` for all rows, or for the rows of a slice; ``None``: the prediction itself."""
Reduce = Callable[[Tensor], Tensor]
"""Sum over ranks, where each measures a part of the rows."""


@dataclass(frozen=True)
class Piece:
    """Some users of a data set: predictions and baseline arms first, and their rows."""

    prediction: ArmsFirst
    model: ArmsFirst | None
    rows: Outcomes


def pieces(
    prediction: ResponsePrediction, outcomes: Outcomes, model: ModelPrediction = None, part: slice | None = None
) -> Iterator[Piece]:
    """N rows, or a part of them, a chunk at a time.

    Args:
        prediction: ``[N, K]``; outcomes: N rows on the same device; model: baseline; part: of the rows, from a start
            to a stop.
    """
    for cut in _cuts(prediction, part):
        own = _cut(prediction, cut)
        if model is None:
            base = own
        else:
            base = _cut(model, cut) if isinstance(model, ResponsePrediction) else ArmsFirst.of(model(cut))
        rows = Rows.of(outcomes, cut)
        yield Piece(own, base, rows)


def _cuts(prediction: ResponsePrediction, part: slice | None) -> Iterator[slice]:
    size = CHUNK if prediction.value.device.type == "cpu" else DEVICE_CHUNK
    start, stop, _ = (part or slice(None)).indices(len(prediction.value))
    yield from (slice(i, min(i + size, stop)) for i in range(start, stop, size))


def _cut(prediction: ResponsePrediction, cut: slice) -> ArmsFirst:
    return ArmsFirst.of(ResponsePrediction(prediction.value[cut], prediction.cost[cut]))


def score_spread(
    prediction: ResponsePrediction, multipliers: Tensor, part: slice | None = None, reduce: Reduce | None = None
) -> Tensor:
    """Mean over users of the standard deviation over arms of ``v̂ − λ ĉ``, for each multiplier.

    √½ of the root mean square of a user's pairwise score margins; a change of every user's scores by one amount, or of
    the unit of value, is followed.

    Args:
        prediction: ``[N, K]`` each; multipliers: ``[B]``; part: of the rows, with reduce: sums over ranks.

    Returns:
        ``[B]`` float64, value units per user, above 0; 1 where all scores are 0.
    """
    sums = multipliers.new_zeros((3, len(multipliers)), dtype=torch.float64)
    for cut in _cuts(prediction, part):
        own = _cut(prediction, cut)
        scores = own.scores(multipliers.to(own.value))
        size = scores.abs()
        # In units of the largest: the square of a score at a large multiplier may overflow in float32.
        unit = size.amax(dim=(1, 2)).clamp_min_(torch.finfo(size.dtype).tiny)
        scores -= scores.mean(dim=1, keepdim=True)
        scores /= unit[:, None, None]
        sums[0] += scores.square_().mean(dim=1).sqrt_().sum(dim=1) * unit.double()
        sums[1] += size.mean(dim=1).sum(dim=1)
        sums[2] += scores.shape[2]
    spread, size_of_scores, users = reduce(sums) if reduce else sums
    found = torch.maximum(spread, SPREAD_FLOOR * size_of_scores) / users
    return found.where(found > SMALLEST_SPREAD, 1.0)


def no_constants(multipliers: Tensor, treatments: int) -> GainConstants:
    """Those of ``ipw`` and ``doubly_robust`` without centring."""
    zero = multipliers.new_zeros((len(multipliers), treatments))
    return GainConstants(zero, zero, torch.ones_like(zero))


def arm_residuals(
    data: Iterator[Piece], multipliers: Tensor, treatments: int, use_model: bool, reduce: Reduce | None = None
) -> GainConstants:
    """Centring: each arm's mean of ``y − m`` over the rows given it, weighted by 1/p; 0 for an arm without rows.

    Args:
        data: all rows; multipliers: ``[B]``; treatments: K; use_model: whether m is the model, else 0.
    """
    sums = multipliers.new_zeros((3, treatments), dtype=torch.float64)
    for piece in data:
        rows, weight = piece.rows, 1 / piece.rows.propensity.double()
        weight = weight if rows.weight is None else weight * rows.weight
        value, cost = rows.value.double(), rows.cost.double()
        if use_model and piece.model is not None:
            given = rows.treatment[None]
            value = value - piece.model.value.gather(0, given)[0]
            cost = cost - piece.model.cost.gather(0, given)[0]
        for total, x in zip(sums, (weight, weight * value, weight * cost), strict=True):
            total.index_add_(0, rows.treatment, x)
    weight, value, cost = reduce(sums) if reduce else sums
    bases = [(x / weight.where(weight > 0, 1)).expand(len(multipliers), -1).to(multipliers) for x in (value, cost)]
    return GainConstants(*bases, factor=torch.ones_like(bases[0]))


def policy_constants(
    data: Iterator[Piece],
    estimator: GradientEstimator,
    weighting: Weighting,
    multipliers: Tensor,
    width: Tensor,
    treatments: int,
    generator: torch.Generator | None = None,
    reduce: Reduce | None = None,
    centres: GainConstants | None = None,
) -> GainConstants:
    """Constants that depend on the policy, under the estimator's smoothing q.

    ::

        hajek           base_bj = m_j + Σ w q (y − m_t) / Σ w q over the rows' own arms t,  factor = N / Σ w q,  w = 1/p
        poststratified  base_bj = the same over the rows given arm j, w = 1, m = 0,
                        factor_bj = Σ_i q_bji / Σ_{t_i=j} q_bji

    An arm of which no row is matched has base and factor 0.

    Args:
        data: all rows; width: ``[B]``, of the smoothing, in units of the scores.
        centres: m of ``hajek``, of :func:`arm_residuals`; ``None``: 0.
    """
    shape = (len(multipliers), treatments)
    # Per multiplier and arm: Σ q over all users; Σ w q, Σ w q y^v, Σ w q y^c over the users given it.
    sums = multipliers.new_zeros((4, *shape), dtype=torch.float64)
    users = multipliers.new_zeros((), dtype=torch.float64)
    for piece in data:
        q = estimator.assignment(piece.prediction.scores(multipliers), width, generator)
        rows = piece.rows
        if rows.weight is not None:
            q = q * rows.weight.to(q)
        matched = q.gather(1, rows.treatment.expand(len(q), 1, -1)).squeeze(1).double()
        if weighting == "hajek":
            matched /= rows.propensity.double()
        value, cost = rows.value.double(), rows.cost.double()
        if centres is not None:
            value = value - centres.value_base.double()[:, rows.treatment]
            cost = cost - centres.cost_base.double()[:, rows.treatment]
        sums[0] += q.sum(dim=2)
        for total, x in zip(sums[1:], (matched, matched * value, matched * cost), strict=True):
            total.index_add_(1, rows.treatment, x)
        users += q.shape[2] if rows.weight is None else rows.weight.double().sum()
    if reduce:
        sums, users = reduce(sums), reduce(users)
    if weighting == "hajek":
        sums, users = sums.sum(dim=2, keepdim=True).expand(-1, -1, treatments), users.expand(shape)
    else:
        users = sums[0]
    weight, value, cost = sums[1], sums[2], sums[3]
    # No row of an arm is matched: it has no estimate, and no row that could want one.
    some = weight.where(weight > 0, torch.inf)
    found = GainConstants(*(x.to(multipliers) for x in (value / some, cost / some, users / some)))
    if centres is None:
        return found
    return GainConstants(centres.value_base + found.value_base, centres.cost_base + found.cost_base, found.factor)


def exchange_rate(
    data: Iterator[Piece],
    estimator: GradientEstimator,
    weighting: Weighting,
    constants: GainConstants,
    multipliers: Tensor,
    width: Tensor,
    generator: torch.Generator | None = None,
    reduce: Reduce | None = None,
) -> Tensor:
    """What a unit of currency is worth along the policy's own path, ``μ = (∂V/∂λ) / (∂C/∂λ)``.

    At a fixed budget λ moves with the predictions so that C stays, and ``dV = V_z dz − μ C_z dz``. From the gradients
    of V and C with respect to scores, ``∂V/∂λ = −Σ_ij ∂V/∂a_ij ĉ_ij``, and alike for C. Calibrated predictions have
    μ = λ. λ stands in for μ where ∂C/∂λ is not below 0 by two of its standard errors,
    or ∂V/∂λ is above 0; where λ = 0 the budget does not bind and μ is 0.

    Returns:
        ``[B]``, value per currency, in the type of ``multipliers``.
    """
    one, none = torch.ones_like(multipliers), torch.zeros_like(multipliers)
    sums = multipliers.new_zeros((4, len(multipliers)), dtype=torch.float64)
    for piece in data:
        shares = (none, one), (one, none)
        both = [gains(piece.rows, weighting, constants, piece.model, *pair) for pair in shares]
        of_cost, of_value = _slopes_by_multiplier(piece, both, estimator, multipliers, width, generator)
        if piece.rows.weight is not None:
            of_cost, of_value = of_cost * piece.rows.weight, of_value * piece.rows.weight
        sums[0] += of_value.sum(dim=1)
        sums[1] += of_cost.sum(dim=1)
        sums[2] += of_cost.square().sum(dim=1)
        sums[3] += of_cost.shape[1]
    value, cost, square, users = reduce(sums) if reduce else sums
    error = (square - cost.square() / users).clamp_min(0).sqrt()
    falls = (cost < -2 * error) & (value <= 0)
    rate = torch.where(falls, value / cost.where(falls, 1.0), multipliers.double())
    return rate.where(multipliers > 0, 0.0).to(multipliers)


def _slopes_by_multiplier(
    piece: Piece,
    gains_of: list[Tensor],
    estimator: GradientEstimator,
    multipliers: Tensor,
    width: Tensor,
    generator: torch.Generator | None,
) -> list[Tensor]:
    """Derivative by λ of what each user earns, ``[B, n]``, for each of several gains ``[B, K, n]``."""
    scores, cost, given = piece.prediction.scores(multipliers), piece.prediction.cost, piece.rows.treatment
    if estimator.is_symmetric:
        # Σ (J g) c = Σ g (J c): one gradient serves all.
        pull = estimator.estimate(scores, cost.expand_as(scores), width, given, generator).gradient
        return [gain.mul_(pull).sum(dim=1).neg_() for gain in gains_of]
    found = (estimator.estimate(scores, gain, width, given, generator).gradient for gain in gains_of)
    return [gradient.mul_(cost).sum(dim=1).neg_() for gradient in found]
