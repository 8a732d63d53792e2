"""What a user is estimated to be worth under every arm, from the one arm that the trial gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction

Weighting = Literal["ipw", "hajek", "poststratified", "doubly_robust"]


class Outcomes(Protocol):
    """Rows of a randomized trial, as a batch or a table: arm given, outcomes, propensity and sample weight, ``[n]``."""

    @property
    def treatment(self) -> Tensor: ...
    @property
    def value(self) -> Tensor: ...
    @property
    def cost(self) -> Tensor: ...
    @property
    def propensity(self) -> Tensor: ...
    @property
    def weight(self) -> Tensor | None: ...


@dataclass(frozen=True)
class ArmsFirst:
    """Predictions of n users, arms first: value and cost ``[K, n]``, detached, at least float32."""

    value: Tensor
    cost: Tensor

    @classmethod
    def of(cls, prediction: ResponsePrediction) -> ArmsFirst:
        """From ``[n, K]``."""
        kind = torch.promote_types(prediction.value.dtype, torch.float32)
        value, cost = (x.detach().T.to(kind).contiguous() for x in (prediction.value, prediction.cost))
        return cls(value, cost)

    def combine(self, value_share: Tensor, cost_share: Tensor) -> Tensor:
        """``value_share_b · value + cost_share_b · cost``, ``[B, K, n]`` for shares ``[B]``."""
        scaled = self.value[None] * value_share[:, None, None]
        return scaled.addcmul_(self.cost[None], cost_share[:, None, None])

    def scores(self, multiplier: Tensor) -> Tensor:
        """``a_bji = v̂_ij − λ_b ĉ_ij``, ``[B, K, n]``."""
        return torch.addcmul(self.value[None], self.cost[None], multiplier[:, None, None], value=-1)

    def cut(self, users: slice) -> ArmsFirst:
        """Some of the users; a view."""
        return ArmsFirst(self.value[:, users], self.cost[:, users])


@dataclass(frozen=True)
class Rows:
    """Outcomes of n rows, ``[n]`` each, and what each row counts for; ``None``: all of them alike."""

    treatment: Tensor
    value: Tensor
    cost: Tensor
    propensity: Tensor
    weight: Tensor | None = None

    @classmethod
    def of(cls, outcomes: Outcomes, rows: slice) -> Rows:
        """Some rows of a batch or a table; views."""
        weight = None if outcomes.weight is None else outcomes.weight[rows]
        names = ("treatment", "value", "cost", "propensity")
        return cls(*(getattr(outcomes, name)[rows] for name in names), weight=weight)


@dataclass(frozen=True)
class GainConstants:
    """What a weighting takes from the whole training data.

    Attributes:
        value_base, cost_base: ``[B, K]``, added to the baseline of every user.
        factor: ``[B, K]``, multiplies the weight of a user who was given arm j.
    """

    value_base: Tensor
    cost_base: Tensor
    factor: Tensor


def gains(
    outcomes: Outcomes,
    weighting: Weighting,
    constants: GainConstants,
    model: ArmsFirst | None,
    value_share: Tensor,
    cost_share: Tensor,
    has_base: bool = True,
) -> Tensor:
    """Gain of every arm for every user, ``[B, K, n]``.

    With ``y_b = value_share_b y^v + cost_share_b y^c`` and a baseline ``m_bji`` combined alike from the constants and,
    under ``doubly_robust``, from a model::

        g_bji = m_bji + 1[t_i = j] ω_bi (y_bi − m_bji),      ω_bi = factor_b,t_i / p_i    (poststratified: no p)

    All weightings are this form: ``ipw`` has m = 0 or the arms' means; ``hajek`` m = V̄ and factor N/S, with
    S = Σ w q and w = 1/p, so that Σ q g / N has the value of V̄ = Σ w q y / S and, at the q of the constants, its
    derivative; ``poststratified`` the mean of the arm's matched rows and the policy's share over theirs.

    Args:
        outcomes: n rows; constants: measured on the whole data, see :mod:`lightning_budget.losses.measure`.
        model: predictions that do not see the rows' own outcomes, for ``doubly_robust``.
        value_share, cost_share: ``[B]``; (1, −κ) for value net of cost at rate κ, (1, 0) for value alone.
        has_base: whether the constants' bases may differ from 0; saves time, and changes nothing, where they do not.
    """
    given, kind = outcomes.treatment, value_share.dtype
    treatments = constants.factor.shape[1]
    # A mask: gathering and scattering along expanded indices takes twice as long.
    mask = (torch.arange(treatments, device=given.device)[:, None] == given).to(kind)
    correction = torch.outer(value_share, outcomes.value.to(kind)).addr_(cost_share, outcomes.cost.to(kind))
    if model is not None and weighting == "doubly_robust":
        result = model.combine(value_share, cost_share)
        correction.addr_(value_share, model.value.gather(0, given[None])[0], alpha=-1)
        correction.addr_(cost_share, model.cost.gather(0, given[None])[0], alpha=-1)
    else:
        result = mask.new_zeros(len(value_share), treatments, len(given))
    if has_base:
        base = value_share[:, None] * constants.value_base + cost_share[:, None] * constants.cost_base
        result += base[:, :, None]
        correction.addmm_(base, mask, alpha=-1)
    if weighting != "poststratified":
        correction /= outcomes.propensity.to(kind)
    if weighting in ("hajek", "poststratified"):
        correction *= constants.factor @ mask
    return result.addcmul_(mask[None], correction[:, None])
