"""Intervals for AUCC, AUUC and Qini, and for differences of two AUCCs, by a Poisson bootstrap over users."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_budget.allocation.compiled import usable
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.aucc import ROUNDING, reward_points
from lightning_budget.metrics.functional.bootstrap import percentile_interval
from lightning_budget.metrics.functional.checks import check_resamples, check_user
from lightning_budget.metrics.functional.columns import as_column, as_row_weight
from lightning_budget.metrics.functional.poisson import hashed_counts, user_hash
from lightning_budget.metrics.functional.ranking import Ranking, rank
from lightning_budget.metrics.functional.uplift_curve import qini_gain, ranked_curve, uplift_gain

_CHUNK_ELEMENTS = 1 << 20
"""Rows times resamples worked on at once in plain torch."""


class UpliftAreas(NamedTuple):
    """Areas of R resamples, ``[R]`` or ``[S, R]`` float64, outcome units per row; NaN where an arm has no rows.

    Attributes:
        auuc: ``area`` of :func:`auuc`, under the uplift curve.
        qini: ``above_random`` of :func:`qini`, between the Qini curve and the straight line to its end.
    """

    auuc: Tensor
    qini: Tensor


@dataclass(frozen=True)
class PairedRankingDifference:
    """AUCC of rankings a minus AUCC of ranking b, all on the same resamples; float64 scalars, or ``[S]``.

    Attributes:
        estimate: on the rows as they are.
        low, high: ends of the percentile interval.
        standard_error: standard deviation of the resamples, for :func:`normal_interval`.
        undefined: int64, resamples that are left out, in which the total Δcost or Δreward is not above 0.
    """

    estimate: Tensor
    low: Tensor
    high: Tensor
    standard_error: Tensor
    undefined: Tensor


def bootstrap_aucc(
    score: Tensor,
    user: Tensor,
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    resamples: int = 200,
    seed: int = 0,
    weight: Tensor | None = None,
    arm: int | None = None,
    parts: int = 200,
) -> Tensor:
    """:func:`aucc` on R resamples of the users.

    Rows are ranked once; compiled, all resamples take a pass for the totals, which several rankings share, and one over
    the rows of each ranking. The counts of :func:`poisson_weights` are drawn on the way and not kept.

    Args:
        score: ``[N]``, what to rank by (:func:`predicted_roi`); ``[S, N]``: S rankings, on common resamples.
        user: ``[N]`` int64, whose rows are drawn together.
        treatment: ``[N]`` integers, 0 for control.
        value: ``[N]``, observed under the arm given.
        cost: ``[N]``, observed under the arm given.
        resamples: R.
        seed: the same seed gives the same resamples.
        weight: ``[N]`` ≥ 0, sample weights, 1/p where propensities vary; they multiply the counts.
        arm: the arm compared with control; may be left out if 1 is the only one.
        parts: Q.

    Returns:
        ``[R]`` or ``[S, R]`` float64, NaN for resamples whose total Δcost or Δreward is not above 0.

    Raises:
        InputError: if columns are misaligned or not finite, a weight is negative, an arm is unknown or has no rows.
    """
    _check(score, user, treatment, resamples, 0.95)
    rows = _aucc_rows(treatment, value, cost, weight, parts)
    rankings = [rank(s, treatment, arm) for s in score.reshape(-1, len(treatment))]
    found = torch.stack(_resample_aucc(rankings, rows, user_hash(user, seed), parts, resamples, seed))
    return found.reshape(*score.shape[:-1], resamples)


def paired_aucc_difference(
    a: Tensor,
    b: Tensor,
    user: Tensor,
    treatment: Tensor,
    value: Tensor,
    cost: Tensor,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    weight: Tensor | None = None,
    arm: int | None = None,
    parts: int = 200,
) -> PairedRankingDifference:
    """AUCC of ranking a minus AUCC of ranking b, with percentile intervals from common resamples of users.

    ``a`` is the score ``[N]`` of a ranking, or ``[S, N]`` of several, each compared with ``b`` ``[N]``; ``level`` is
    that of the interval; the other arguments are those of :func:`bootstrap_aucc`.

    Raises:
        InputError: as :func:`bootstrap_aucc`, and if the total Δcost or Δreward is not above 0.
    """
    _check(a, user, treatment, resamples, level)
    _check(b[None], user, treatment, resamples, level)
    rows = _aucc_rows(treatment, value, cost, weight, parts)
    rankings = [rank(s, treatment, arm) for s in (*a.reshape(-1, len(treatment)), b)]
    *first, second = _resample_aucc(rankings, rows, user_hash(user, seed), parts, resamples, seed)
    *at_once, base = (_aucc(ranking, rows, parts) for ranking in rankings)
    found = []
    for estimate, samples in zip(at_once, first, strict=True):
        difference = samples - second
        kept = difference[difference.isfinite()]
        missing = torch.tensor(resamples - len(kept), device=kept.device)
        if len(kept) < 2:
            kept = kept.new_full((2,), torch.nan)
        found.append((estimate - base, *percentile_interval(kept, level), kept.std(), missing))
    shape = a.shape[:-1]
    return PairedRankingDifference(*(torch.stack(x).reshape(shape) for x in zip(*found, strict=True)))


def bootstrap_uplift(
    score: Tensor,
    user: Tensor,
    treatment: Tensor,
    outcome: Tensor,
    resamples: int = 200,
    seed: int = 0,
    weight: Tensor | None = None,
    arm: int | None = None,
) -> UpliftAreas:
    """AUUC and Qini on R resamples of the users, both from one pass over the rows.

    ``score`` is the predicted uplift ``[N]``, or ``[S, N]`` of S rankings, ``outcome`` ``[N]`` is observed under the
    arm given; the other arguments and the errors are those of :func:`bootstrap_aucc`.
    """
    _check(score, user, treatment, resamples, 0.95)
    n = len(treatment)
    weights, y = as_row_weight(weight, n, treatment.device), as_column("outcome", outcome, n)
    hashed = user_hash(user, seed)
    auuc, qini = [], []
    for s in score.reshape(-1, n):
        ranking = rank(s, treatment, arm)
        areas = _resample_uplift(ranking, hashed, weights, y, resamples, seed)
        auuc.append(areas[0])
        qini.append(areas[1])
    shape = (*score.shape[:-1], resamples)
    return UpliftAreas(torch.stack(auuc).reshape(shape), torch.stack(qini).reshape(shape))


class _Rows(NamedTuple):
    """Columns ``[N]`` float64."""

    weight: Tensor
    value: Tensor
    cost: Tensor


def _aucc_rows(treatment: Tensor, value: Tensor, cost: Tensor, weight: Tensor | None, parts: int) -> _Rows:
    if parts < 1:
        raise InputError(f"parts={parts}", "at least 1", "200 is the published choice")
    n = len(treatment)
    return _Rows(as_row_weight(weight, n, treatment.device), as_column("value", value, n), as_column("cost", cost, n))


def _check(score: Tensor, user: Tensor, treatment: Tensor, resamples: int, level: float) -> None:
    check_resamples(resamples, level)
    rows = treatment.numel()
    if score.ndim not in (1, 2) or score.shape[-1] != rows or score.numel() == 0:
        raise InputError(
            f"score has shape {list(score.shape)}",
            f"[{rows}], or [S, {rows}] for S rankings of the rows",
            "align score with treatment",
        )
    check_user(user, rows)


def _aucc(ranking: Ranking, rows: _Rows, parts: int) -> Tensor:
    weight, value, cost = (ranking.take(x) for x in rows)
    return reward_points(ranking, weight, value, cost, parts).mean(-1)


def _resample_aucc(
    rankings: list[Ranking], rows: _Rows, hashed: Tensor, parts: int, resamples: int, seed: int
) -> list[Tensor]:
    """``[R]`` of each ranking of the same rows, all on the same counts."""
    if usable(hashed):
        from lightning_budget.metrics.functional.compiled.ranking_run import cut_rewards, totals

        total = totals(rankings[0], hashed, *rows, resamples, seed)
        return [cut_rewards(ranking, hashed, *rows, total, parts, ROUNDING, seed) for ranking in rankings]
    found = []
    for ranking in rankings:
        weight, value, cost = (ranking.take(x) for x in rows)
        blocks = _counts(ranking, hashed, resamples, seed)
        found.append(torch.cat([reward_points(ranking, n * weight, value, cost, parts).mean(-1) for n in blocks]))
    return found


def _resample_uplift(
    ranking: Ranking, hashed: Tensor, weight: Tensor, outcome: Tensor, resamples: int, seed: int
) -> tuple[Tensor, Tensor]:
    if usable(hashed):
        from lightning_budget.metrics.functional.compiled.ranking_run import uplift_areas

        return uplift_areas(ranking, hashed, weight, outcome, resamples, seed)
    weight, outcome = ranking.take(weight), ranking.take(outcome)
    auuc, qini = [], []
    for n in _counts(ranking, hashed, resamples, seed):
        auuc.append(ranked_curve(ranking, n * weight, outcome, uplift_gain).area)
        qini.append(ranked_curve(ranking, n * weight, outcome, qini_gain).above_random)
    return torch.cat(auuc), torch.cat(qini)


def _counts(ranking: Ranking, hashed: Tensor, resamples: int, seed: int) -> Iterator[Tensor]:
    """Counts ``[r, n]`` in order of the ranking, a few resamples at a time, which bounds the memory."""
    ranked = ranking.take(hashed)
    step = max(1, _CHUNK_ELEMENTS // len(ranked))
    step += step % 2  # two resamples share a hash
    for first in range(0, resamples, step):
        yield hashed_counts(ranked, seed, range(first, min(first + step, resamples)))
