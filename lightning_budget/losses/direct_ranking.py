"""Direct methods: learn whom money reaches best, without fitting what he would yield.

All of them give an arm j and a user a score ``s_ij`` against a reference arm ``r(j)``, and treat where
``q_ij = scale · σ(s_ij)`` exceeds the multiplier; :class:`lightning_budget.models.direct_ranking.DirectRanking` makes
predictions of the scores whose policy is just that.

========  ===================  =================================================================================
loss      reference            what q is
========  ===================  =================================================================================
``drp``   control              the return ``τ^v / τ^c`` of the arm against control
``dpm``   the arm next below   the marginal return, of the step up to the arm
``drm``   control              no return: the larger the sooner the user is treated
========  ===================  =================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_budget.batch import RCTBatch


@dataclass(frozen=True)
class Trial:
    """What the direct losses take from the training data.

    Attributes:
        factor: ``[K]``, see :func:`arm_factor`.
        gain: value per user that arms 1 … K − 1 yield above control, on average over arms.
        cost_scale: outcome units of one unit of cost.
        weight_mean: mean sample weight.
    """

    factor: Tensor
    gain: float
    cost_scale: float
    weight_mean: float = 1.0


def arm_factor(treatment: Tensor, propensity: Tensor, weight: Tensor | None, arms: int) -> Tensor:
    """``Σ_i w_i / Σ_{t_i = j} (w_i / p_i)`` over N rows, ``[K]`` float32, for sample weights w.

    Times ``1/p_i`` it is ``N / N_{t_i}`` where propensities do not depend on the user: arms' means have weights that
    add up to 1, as under the factual loss, and are right where propensities do.
    """
    w = torch.ones_like(propensity, dtype=torch.float64) if weight is None else weight.double()
    given = torch.zeros(arms, dtype=torch.float64).index_add_(0, treatment, w / propensity.double())
    return (w.sum() / given).float()


def row_weights(batch: RCTBatch, trial: Trial) -> Tensor:
    """``[n]``: ``N / N_{t_i}`` times the sample weight in units of the mean one; 0 for filling."""
    weight = trial.factor[batch.treatment] / batch.propensity
    if batch.weight is not None:
        weight = weight * batch.weight / trial.weight_mean
    return weight.where(batch.row >= 0, 0)


def sides(treatment: Tensor, reference: Sequence[int]) -> Tensor:
    """``[n, K]``: 1 where a row was given arm j, −1 where it was given the reference of j, else 0.

    Args:
        reference: K arms; an arm that is its own reference, the cheapest, has no score and no side.
    """
    arms = torch.arange(len(reference), device=treatment.device)
    below = torch.tensor(reference, device=treatment.device)
    given = treatment.unsqueeze(1)
    return ((given == arms).float() - (given == below).float()) * (below != arms)


def roi_losses(batch: RCTBatch, score: Tensor, reference: Sequence[int], scale: float, trial: Trial) -> Tensor:
    """Loss of ``drp`` and ``dpm``, of each row, ``[n]``.

    The mean over rows is, for each arm j with reference r and averaged over arms::

        − (1/N_j) Σ_{t_i = j} ℓ_ij + (1/N_r) Σ_{t_i = r} ℓ_ij,     ℓ_ij = (y^v_i / scale) ln(q/(1−q)) + y^c_i ln(1−q)

    with ``q = σ(s_ij)``, in units of the cost's scale. Its expectation ``−τ^v s / scale + τ^c ln(1 + e^s)`` is convex
    in s wherever ``τ^c > 0`` and least at ``σ(s) = τ^v / (scale · τ^c)``: a return beyond ``scale`` has no minimiser,
    nor has a negative one, and s goes on growing. A single row's loss has no least value either. A plain mean over
    rows, the same for any split of the batch over ranks.

    Args:
        batch: n rows; score: ``[n, K]``, s; reference: see :func:`sides`.
        scale: value per unit of currency at q = 1; trial: of the training data.

    Source: Zhou, Li, Jiang, Zheng, Wang 2023 (DRP), arXiv:2211.15728. Adjacent arms (DPM) are a *reconstruction*: the
    paper's decision factor for several treatments, compared with the multiplier, is taken as the marginal return of
    each step, which the same loss fits with the arm below in place of control. So are several arms against control.
    """
    side = sides(batch.treatment, reference)
    per_arm = batch.value.unsqueeze(1) / scale * score - batch.cost.unsqueeze(1) * F.softplus(score)
    arms = len(reference) - 1
    return -row_weights(batch, trial) * (side * per_arm).sum(1) / (arms * trial.cost_scale)


def ranking_loss(batch: RCTBatch, score: Tensor, trial: Trial) -> Tensor:
    """Loss of ``drm``, a scalar of the whole batch: cost per unit of value among those whom the score puts first.

    With ``h_ij = tanh(s_ij / 2)`` and effectiveness weights, a softmax of h over the rows given arm j, and one over the
    rows given control::

        L = Δc / Δv,     Δy = Σ_j π_j ( Σ_{t_i = j} w_ij y_i − Σ_{t_i = 0} u_ij y_i ),
        w_ij = e^{h_ij} / Σ_{t_l = j} e^{h_lj},     u_ij likewise over control,     π_j ∝ Σ_i e^{h_ij}

    It is a ratio of sums over the batch, no mean over rows: it depends on how rows fall into batches, wants large ones,
    and cannot be split over ranks. Where ``Δv`` falls below a tenth of the trial's gain per user, 1/Δv goes on as its
    tangent there, so that a batch of unlucky noise neither blows up nor changes the sign of the gradient.

    Args:
        batch: n rows; score: ``[n, K]``, s, against control; trial: of the training data.

    Returns:
        In units in which all users alike have about 1; 0 where no treated arm or no control is in the batch.

    Source: Du, Lee, Ghaffarizadeh 2019, arXiv:2004.09702, for K = 2. Several arms are this library's: the ratio is that
    of all (user, arm) pairs together, which makes scores of different arms comparable.
    """
    h = torch.tanh(score[:, 1:] / 2)
    weight = row_weights(batch, trial).unsqueeze(1)
    arms = torch.arange(1, score.shape[1], device=score.device)
    exponential = h.exp()
    treated = exponential * weight * (batch.treatment.unsqueeze(1) == arms)
    control = exponential * weight * (batch.treatment == 0).unsqueeze(1)
    present = (treated.sum(0) > 0) & (control.sum(0) > 0)
    counted = (batch.row >= 0) if batch.weight is None else batch.weight.where(batch.row >= 0, 0)
    share = (exponential * counted.unsqueeze(1)).sum(0) * present
    share = share / share.sum().clamp_min(torch.finfo(share.dtype).tiny)

    def effect(y: Tensor) -> Tensor:
        mean = [(w * y.unsqueeze(1)).sum(0) / w.sum(0).where(present, 1) for w in (treated, control)]
        return (share * (mean[0] - mean[1])).sum()

    value, cost = effect(batch.value), effect(batch.cost)
    floor = 0.1 * trial.gain
    inverse = torch.where(value > floor, 1 / value.clamp_min(floor), (2 - value / floor) / floor)
    return cost / trial.cost_scale * inverse * trial.gain * present.any()
