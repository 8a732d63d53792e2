"""Features that are an outcome: recorded after the arm took effect, whatever their name says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.trial.logged import IdFeature, Logged

MAX_CORRELATION = 0.999
MIN_CARRIERS = 5
"""A variance that hangs on fewer rows, (Σ d²)² / Σ d⁴, can be shared by chance."""
MIN_FREE = 20


@dataclass(frozen=True)
class OutcomeCopy:
    """A feature that repeats an outcome: correlation within an arm; of ids, root of the adjusted share explained."""

    feature: str
    outcome: str
    arm: str
    correlation: float


@dataclass(frozen=True)
class Deviations:
    """A column without its arms' means: ``[N]`` deviations, ``[K]`` sums of squares, and whether they can be used."""

    of_rows: Tensor
    square: Tensor
    usable: Tensor


def outcome_copies(trial: Logged, numbers: Sequence[tuple[str, Tensor]]) -> list[OutcomeCopy]:
    """Numbers (name, ``[N]``) and id features whose correlation with value or cost within an arm is above 0.999."""
    outcomes = [(what, within_arms(trial, y)) for what, y in (("value", trial.value), ("cost", trial.cost))]
    found = []
    for name, column in numbers:
        x = within_arms(trial, column)
        for what, y in outcomes:
            product = trial.arm_sums(x.of_rows * y.of_rows)
            correlation = product / (x.square * y.square).clamp(min=1e-300).sqrt()
            usable = x.usable & y.usable
            found += _copy(trial, name, what, torch.where(usable, correlation, torch.zeros_like(correlation)))
    for feature in trial.ids:
        # Levels as numerous as rows explain everything and show nothing.
        if feature.offsets is None and feature.levels * len(trial.arms) <= 4 * len(trial) + 1000:
            for what, y in outcomes:
                found += _copy(trial, feature.name, what, _explained(trial, feature, y).clamp(min=0).sqrt())
    return found


def within_arms(trial: Logged, column: Tensor) -> Deviations:
    """Take the arms' means out; a column constant in an arm, or carried by fewer than 5 rows, cannot be used there."""
    x = column.double()
    size, raw = trial.arm_rows().clamp(min=1), trial.arm_sums(x.square())
    x = x - (trial.arm_sums(x) / size)[trial.treatment]
    squared = x.square()
    square, fourth = trial.arm_sums(squared), trial.arm_sums(squared.square())
    # Rounding leaves a constant column tiny deviations.
    usable = (square > 1e-24 * raw) & (square.square() >= MIN_CARRIERS * fourth)
    return Deviations(x, square, usable)


def _explained(trial: Logged, feature: IdFeature, y: Deviations) -> Tensor:
    """``[K]`` share of the outcome's variance that the levels explain, adjusted for their number, 0 where unusable."""
    k, levels = len(trial.arms), feature.levels
    key, size = feature.values * k + trial.treatment, trial.arm_rows()
    count = torch.bincount(key, minlength=levels * k).view(levels, k)
    sums = torch.bincount(key, weights=y.of_rows, minlength=levels * k).view(levels, k)
    explained = (sums.square() / count.clamp(min=1)).sum(0)
    free = size - (count > 0).sum(0)
    unexplained = (y.square - explained) / free.clamp(min=1)
    share = 1 - unexplained / (y.square / (size - 1).clamp(min=1)).clamp(min=1e-300)
    return torch.where((free >= MIN_FREE) & y.usable, share, torch.zeros_like(share))


def _copy(trial: Logged, feature: str, outcome: str, correlation: Tensor) -> list[OutcomeCopy]:
    j = int(correlation.abs().argmax())
    if float(correlation[j].abs()) <= MAX_CORRELATION:
        return []
    return [OutcomeCopy(feature, outcome, trial.arms[j], float(correlation[j]))]
