"""Do predictions mean what they say: predicted against observed outcome, arm by arm, in bins of the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import check_treatment
from lightning_budget.metrics.functional.columns import as_column, as_propensity, as_row_weight

_FLAT = 1e-12
"""Predictions whose variance is below this share of their mean square are one constant, and have no slope."""


class Calibration(NamedTuple):
    """Predicted beside observed outcome of K arms in Q bins; float64, NaN where there are too few rows.

    Attributes:
        mean_prediction, mean_outcome: ``[K, Q]``, self-normalised, outcome units per row.
        standard_error: ``[K, Q]``, of ``mean_outcome``.
        rows: ``[K, Q]``, sum of the sample weights: the number of rows where none are given.
        expected_error: ``[K]``, mean over the arm's rows of the distance between mean outcome and mean prediction of
            their bin. Sampling noise alone makes it positive, of the order of the standard errors.
        slope, intercept: ``[K]``, least squares line of the outcome on the prediction; 1 and 0 if calibrated.
    """

    mean_prediction: Tensor
    mean_outcome: Tensor
    standard_error: Tensor
    rows: Tensor
    expected_error: Tensor
    slope: Tensor
    intercept: Tensor


def calibration(
    prediction: Tensor,
    treatment: Tensor,
    outcome: Tensor,
    propensity: Tensor,
    weight: Tensor | None = None,
    bins: int = 10,
) -> Calibration:
    """Calibration of every arm on the rows that were given it, in Q bins of equal size.

    With f_i the prediction for the arm given, p_i its propensity, s_i the sample weight and ω_i = s_i / p_i, arm by
    arm::

        mean outcome of a bin    ȳ = Σ ω y / Σ ω        (mean prediction likewise)
        standard error           √( Σ s p⁻² (y − ȳ)² · n / (n − 1) ) / Σ ω,    n = Σ s
        expected error           Σ_q Σ_{i in q} ω_i |ȳ_q − f̄_q| / Σ ω

    Bins hold equal sums of ω; rows of equal prediction share a bin, which then may leave others empty.

    Args:
        prediction: ``[N, K]``, of value or of cost.
        treatment: ``[N]`` integers, the arm given.
        outcome: ``[N]``, observed under it, in the units of the prediction.
        propensity: ``[N]``, its probability.
        weight: ``[N]`` ≥ 0, how often a row counts.
        bins: Q.

    Raises:
        InputError: if columns are misaligned or not finite, a weight is negative, a propensity outside (0, 1], or a
            treatment outside 0 … K − 1.
    """
    if bins < 1:
        raise InputError(f"bins={bins}", "at least 1", "10 show the shape")
    rows, arms = _check(prediction, treatment)
    factual = as_column("prediction of the arm given", prediction.gather(1, treatment.long()[:, None])[:, 0], rows)
    mass = as_row_weight(weight, rows, factual.device) / as_propensity(propensity, rows)
    bin_ = _equal_bins(factual, treatment.long(), mass, arms, bins)
    return calibration_of(_sums(factual, treatment, outcome, propensity, weight, bin_, arms, bins))


def calibration_sums(
    prediction: Tensor,
    treatment: Tensor,
    outcome: Tensor,
    propensity: Tensor,
    edges: Tensor | Sequence[float],
    weight: Tensor | None = None,
) -> Tensor:
    """What :func:`calibration_of` needs of rows, in bins between fixed edges; sums of parts are those of the whole.

    Args:
        edges: ``[Q − 1]`` ascending, common to all arms; a prediction on an edge belongs above it, and the outer bins
            are open.

    The other arguments and errors are those of :func:`calibration`.

    Returns:
        ``[K, Q, 9]`` float64.
    """
    rows, arms = _check(prediction, treatment)
    edge = as_edges(edges, prediction.device)
    factual = as_column("prediction of the arm given", prediction.gather(1, treatment.long()[:, None])[:, 0], rows)
    bin_ = torch.bucketize(factual, edge, right=True)
    return _sums(factual, treatment, outcome, propensity, weight, bin_, arms, len(edge) + 1)


def calibration_of(sums: Tensor) -> Calibration:
    """Calibration from sums ``[K, Q, 9]`` of :func:`calibration_sums`."""
    count, mass, f, y, _, _, square, square_y, square_yy = sums.unbind(-1)
    held = mass > 0
    mass_or_nan = torch.where(held, mass, torch.nan)
    mean_f, mean_y = f / mass_or_nan, y / mass_or_nan
    deviation = (square_yy - 2 * mean_y * square_y + mean_y.square() * square).clamp(min=0.0)
    spare = torch.where(count > 1, count - 1, torch.nan)
    error = (deviation * count / spare).sqrt() / mass_or_nan
    gap = torch.where(held, mass * (mean_y - mean_f).abs(), 0.0).sum(-1)
    slope, intercept = _line(sums.sum(1))
    return Calibration(mean_f, mean_y, error, count, gap / mass.sum(-1), slope, intercept)


def as_edges(edges: Tensor | Sequence[float], device: torch.device | None = None) -> Tensor:
    """Bin edges as ``[Q − 1]`` float64; refuses none and those that do not ascend."""
    edge = torch.as_tensor(edges, dtype=torch.float64, device=device)
    if edge.ndim != 1 or len(edge) < 1 or not bool(torch.isfinite(edge).all() and (edge.diff() > 0).all()):
        raise InputError(
            f"edges {edge.tolist()}", "one or more ascending numbers", "take quantiles of predictions, each once"
        )
    return edge


def _check(prediction: Tensor, treatment: Tensor) -> tuple[int, int]:
    if prediction.ndim != 2 or prediction.shape[0] < 1:
        raise InputError(
            f"prediction has shape {list(prediction.shape)}",
            "[N, K], at least 1 row",
            "give one column per treatment, control first",
        )
    check_treatment(treatment, *prediction.shape)
    return prediction.shape[0], prediction.shape[1]


def _equal_bins(factual: Tensor, arm: Tensor, mass: Tensor, arms: int, bins: int) -> Tensor:
    """Bin of each row: where the middle of its group of equal predictions lies in the mass of its arm."""
    order = factual.sort(stable=True).indices
    order = order[arm[order].sort(stable=True).indices]
    f, a = factual[order], arm[order]
    first = torch.ones_like(a, dtype=torch.bool)
    first[1:] = (f[1:] != f[:-1]) | (a[1:] != a[:-1])
    group = first.cumsum(0) - 1
    held = mass.new_zeros(int(group[-1]) + 1).index_add_(0, group, mass[order])
    total = mass.new_zeros(arms).index_add_(0, arm, mass)
    middle = (held.cumsum(0) - held / 2)[group] - (total.cumsum(0) - total)[a]
    share = middle / torch.where(total > 0, total, 1.0)[a]
    return torch.empty_like(a).index_put_((order,), (share * bins).long().clamp(0, bins - 1))


def _sums(
    factual: Tensor,
    treatment: Tensor,
    outcome: Tensor,
    propensity: Tensor,
    weight: Tensor | None,
    bin_: Tensor,
    arms: int,
    bins: int,
) -> Tensor:
    y = as_column("outcome", outcome, len(factual))
    inverse = 1 / as_propensity(propensity, len(factual))
    count = as_row_weight(weight, len(factual), factual.device)
    mass, cell = count * inverse, treatment.long() * bins + bin_
    square = mass * inverse
    moments = (count, mass, mass * factual, mass * y, mass * factual * factual, mass * factual * y)
    moments += (square, square * y, square * y * y)
    sums = [x.new_zeros(arms * bins).index_add_(0, cell, x) for x in moments]
    return torch.stack(sums, -1).reshape(arms, bins, -1)


def _line(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of the weighted least squares line, arm by arm."""
    _, mass, f, y, ff, fy, *_ = sums.unbind(-1)
    mean_f, mean_y = f / mass, y / mass
    variance = ff / mass - mean_f.square()
    slope = torch.where(variance > _FLAT * ff / mass, (fy / mass - mean_f * mean_y) / variance, torch.nan)
    return slope, mean_y - slope * mean_f
