"""Uplift and Qini curves of a ranking on randomized logs of two arms, and the areas under them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.columns import as_column, as_weight
from lightning_budget.metrics.functional.ranking import Ranking, rank


class RankingArea(NamedTuple):
    """Area under the curve of a ranking; float64 scalars, or ``[R]``.

    Attributes:
        area: ∫_0^1 gain d share, outcome units per row.
        above_random: ``area`` minus that of the straight line from the curve's start to its end.
        normalized: ``above_random`` over that of the perfect ranking; NaN where the perfect one has none.
    """

    area: Tensor
    above_random: Tensor
    normalized: Tensor


@dataclass(frozen=True)
class UpliftCurve:
    """Gain from treating the best-ranked share of the rows, at every distinct score; straight lines between.

    Attributes:
        share: ``[…, M + 1]`` float64 from 0 to 1.
        gain: ``[…, M + 1]`` float64 from 0, outcome units per row of the two arms.
    """

    share: Tensor
    gain: Tensor

    @property
    def area(self) -> Tensor:
        """∫_0^1 gain d share."""
        return torch.trapezoid(self.gain, self.share)

    @property
    def above_random(self) -> Tensor:
        """Area between the curve and the straight line to its end."""
        return self.area - self.gain[..., -1] / 2


def uplift_curve(
    score: Tensor, treatment: Tensor, outcome: Tensor, weight: Tensor | None = None, arm: int | None = None
) -> UpliftCurve:
    """Uplift curve: difference of the arms' means among the best-ranked, times their share.

    With N(k), N_1(k), N_0(k) the rows, treated and controls down to rank k, Y_1(k), Y_0(k) their outcomes::

        gain(k) = (Y_1(k) / N_1(k) − Y_0(k) / N_0(k)) · N(k) / N

    The mean of an arm without rows yet counts as 0. Rows of equal score enter together, so that the curve has one point
    for each distinct score, and the order of the rows does not matter.

    Args:
        score: ``[N]``, predicted uplift; best first.
        treatment: ``[N]`` integers, 0 for control.
        outcome: ``[N]``, observed under the arm given, binary or continuous.
        weight: ``[N]`` ≥ 0, how often a row counts; 1/p where propensities vary. ``[R, N]``: R weightings, one curve
            each, NaN where an arm weighs nothing.
        arm: the arm compared with control, rows of others are left out; may be left out if 1 is the only one.

    Raises:
        InputError: if columns are misaligned or not finite, a weight is negative, an arm is unknown or has no rows.

    Source: Devriendt, Guns, Verbeke 2020, arXiv 2002.05897.
    """
    return _curve(score, treatment, outcome, weight, arm, uplift_gain)


def qini_curve(
    score: Tensor, treatment: Tensor, outcome: Tensor, weight: Tensor | None = None, arm: int | None = None
) -> UpliftCurve:
    """Qini curve: outcomes of the treated minus those of as many controls, among the best-ranked.

    In the symbols of :func:`uplift_curve`, which also tells arguments, ties and errors::

        gain(k) = (Y_1(k) − Y_0(k) · N_1(k) / N_0(k)) / N

    The second term is 0 where there is no control yet.

    Source: Radcliffe 2007, Using control groups to target on predicted lift.
    """
    return _curve(score, treatment, outcome, weight, arm, qini_gain)


def auuc(
    score: Tensor, treatment: Tensor, outcome: Tensor, weight: Tensor | None = None, arm: int | None = None
) -> RankingArea:
    """Area under the uplift curve, raw and over that of the perfect ranking.

    ``normalized`` is scikit-uplift's ``uplift_auc_score``, ``area`` the area under its curve divided by N². For an
    outcome of 0 and 1 the perfect ranking is scikit-uplift's: the treated with 1, the controls with 0, the larger group
    of the treated with 0 (first at equal size) and the controls with 1, the other group. For any other outcome, where
    there is no standard, it is that of :func:`qini`.

    Arguments and errors as :func:`uplift_curve`.
    """
    curve = uplift_curve(score, treatment, outcome, weight, arm)
    return _areas(curve, _perfect_uplift(treatment, outcome, weight, arm))


def qini(
    score: Tensor, treatment: Tensor, outcome: Tensor, weight: Tensor | None = None, arm: int | None = None
) -> RankingArea:
    """Area under the Qini curve, raw and over that of the perfect ranking (the Qini coefficient).

    ``normalized`` is scikit-uplift's ``qini_auc_score`` with its default ``negative_effect=True``, ``area`` the area
    under its curve divided by N². The perfect ranking has the score y for treated rows and −y for controls, for binary
    and for continuous outcomes; it knows the outcomes, and no model comes near it.

    Arguments and errors as :func:`uplift_curve`.
    """
    curve = qini_curve(score, treatment, outcome, weight, arm)
    perfect = qini_curve(_signed(treatment, outcome), treatment, outcome, weight, arm)
    return _areas(curve, perfect.above_random)


Gain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _curve(
    score: Tensor, treatment: Tensor, outcome: Tensor, weight: Tensor | None, arm: int | None, gain: Gain
) -> UpliftCurve:
    ranking = rank(score, treatment, arm)
    weights = ranking.take(as_weight(weight, len(treatment), treatment.device))
    return ranked_curve(ranking, weights, ranking.take(as_column("outcome", outcome, len(treatment))), gain)


def ranked_curve(ranking: Ranking, weights: Tensor, y: Tensor, gain: Gain) -> UpliftCurve:
    """Curve of a ranking; weights ``[…, n]`` and outcomes ``[n]`` in its order, float64."""
    treated, control = weights * ranking.treated, weights * ~ranking.treated
    n1, n0 = ranking.sums(treated), ranking.sums(control)
    gains = gain(n1, n0, ranking.sums(treated * y), ranking.sums(control * y))
    rows = n1 + n0
    held = (n1[..., -1:] > 0) & (n0[..., -1:] > 0)
    if weights.ndim == 1 and not bool(held):
        raise InputError("an arm of total weight 0", "above 0", "check the weights of the rows of both arms")
    total = torch.where(held, rows[..., -1:], torch.nan)
    start = torch.zeros_like(total)
    return UpliftCurve(torch.cat([start, rows / total], -1), torch.cat([start, gains / total], -1))


def uplift_gain(n1: Tensor, n0: Tensor, y1: Tensor, y0: Tensor) -> Tensor:
    """Gains times rows, from weights and weighted outcomes of both arms down to each group of a ranking."""
    return (_ratio(y1, n1) - _ratio(y0, n0)) * (n1 + n0)


def qini_gain(n1: Tensor, n0: Tensor, y1: Tensor, y0: Tensor) -> Tensor:
    """As :func:`uplift_gain`, of the Qini curve."""
    return y1 - y0 * _ratio(n1, n0)


def _ratio(x: Tensor, n: Tensor) -> Tensor:
    return torch.where(n > 0, x / torch.where(n > 0, n, 1.0), 0.0)


def _areas(curve: UpliftCurve, perfect: Tensor) -> RankingArea:
    area, above = curve.area, curve.above_random
    return RankingArea(area, above, torch.where(perfect > 0, above / perfect, torch.nan))


def _signed(treatment: Tensor, outcome: Tensor) -> Tensor:
    return torch.where(treatment == 0, -outcome, outcome)


def _perfect_uplift(treatment: Tensor, outcome: Tensor, weight: Tensor | None, arm: int | None) -> Tensor:
    """Area above random of the perfect ranking."""
    treated, one = treatment != 0, outcome == 1
    if not bool((one | (outcome == 0)).all()):
        return uplift_curve(_signed(treatment, outcome), treatment, outcome, weight, arm).above_random
    agree = 2.0 * (one == treated)
    weights = as_weight(weight, len(treatment), treatment.device)
    kept = treatment <= 1 if arm is None else (treatment == 0) | (treatment == arm)
    controls_first = (weights * (kept & one & ~treated)).sum(-1) > (weights * (kept & ~one & treated)).sum(-1)
    above = [uplift_curve(agree + last, treatment, outcome, weight, arm).above_random for last in (one, treated)]
    return torch.where(controls_first, *above)
