"""Propensities: how far the weights of rows are from equal, and how many equal weights they are worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_budget.trial.logged import Logged
from lightning_budget.trial.verdict import Verdict, plain

SMALL = 0.01
MAX_SMALL_SHARE = 0.01
MIN_EFFECTIVE_SHARE = 0.2
MAX_WEIGHT_SHARE = 0.05


@dataclass(frozen=True)
class ArmPropensity:
    """Weights w of one arm's rows: 1 / p, times the sample weight where there is one.

    Attributes:
        arm, rows: which.
        lowest, highest: propensities; 0 without rows.
        small_share: share of its rows with p below 0.01.
        effective_rows: (Σ w)² / Σ w² (Kish 1965): as many rows of equal weight have the same variance.
        largest_weight_share: largest w / Σ w.
    """

    arm: str
    rows: int
    lowest: float
    highest: float
    small_share: float
    effective_rows: float
    largest_weight_share: float


@dataclass(frozen=True)
class Propensity:
    """Propensities of the arms given, arm by arm, control first."""

    arms: tuple[ArmPropensity, ...]
    small: float = SMALL
    max_small_share: float = MAX_SMALL_SHARE
    min_effective_share: float = MIN_EFFECTIVE_SHARE
    max_weight_share: float = MAX_WEIGHT_SHARE

    def verdict(self) -> Verdict:
        """Arms without rows first, then the arm worst off."""
        for a in self.arms:
            if not a.rows:
                return Verdict(
                    False, f"arm {a.arm!r} has no rows (at least 1); leave it out of the arms, or bring its rows"
                )
        a = max(self.arms, key=lambda a: a.small_share)
        if a.small_share > self.max_small_share:
            return Verdict(
                False,
                f"{100 * a.small_share:.3g} % of the rows of arm {a.arm!r} have propensities below {self.small:g} "
                f"(threshold {100 * self.max_small_share:g} %); "
                "compare eom_hajek with eom_ipw, and keep to users with more",
            )
        a = min(self.arms, key=lambda a: a.effective_rows / a.rows)
        if a.effective_rows < self.min_effective_share * a.rows:
            return Verdict(
                False,
                f"the {a.rows:,} rows of arm {a.arm!r} are worth {a.effective_rows:,.0f} of equal weight (threshold "
                f"{100 * self.min_effective_share:g} %); expect wide intervals, and rely on eom_hajek",
            )
        a = max(self.arms, key=lambda a: a.largest_weight_share)
        if a.largest_weight_share > self.max_weight_share:
            return Verdict(
                False,
                f"one row has {100 * a.largest_weight_share:.3g} % of the weight of arm {a.arm!r} (threshold "
                f"{100 * self.max_weight_share:g} %); bring more rows, or check its propensity",
            )
        low, high = min(a.lowest for a in self.arms), max(a.highest for a in self.arms)
        a = min(self.arms, key=lambda a: a.effective_rows)
        return Verdict(
            True,
            f"propensities from {low:.3g} to {high:.3g}; at least {a.effective_rows:,.0f} effective rows an arm",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain(self)


def check_propensity(trial: Logged, sample_weight: Tensor | None = None) -> Propensity:
    """Range, effective rows and largest weight of every arm; sample weights ``[N]`` ≥ 0 belong to the weights."""
    k, p = len(trial.arms), trial.propensity.double()
    w = trial.weight if sample_weight is None else trial.weight * sample_weight.double()
    rows, total, square = trial.arm_rows(), trial.arm_sums(w), trial.arm_sums(w.square())
    small = trial.arm_sums(p < SMALL)
    lowest = torch.full((k,), torch.inf, dtype=torch.float64).scatter_reduce_(0, trial.treatment, p, "amin")
    highest = torch.zeros(k, dtype=torch.float64).scatter_reduce_(0, trial.treatment, p, "amax")
    heaviest = torch.zeros(k, dtype=torch.float64).scatter_reduce_(0, trial.treatment, w, "amax")
    arms = []
    for j, name in enumerate(trial.arms):
        n = float(rows[j])
        if n == 0:
            arms.append(ArmPropensity(name, 0, 0.0, 0.0, 0.0, 0.0, 0.0))
            continue
        # An arm whose rows all weigh nothing is worth none.
        effective, largest = (
            float(x / y.clamp(min=1e-300)) for x, y in ((total[j] ** 2, square[j]), (heaviest[j], total[j]))
        )
        arms.append(
            ArmPropensity(name, int(n), float(lowest[j]), float(highest[j]), float(small[j]) / n, effective, largest)
        )
    return Propensity(tuple(arms))
