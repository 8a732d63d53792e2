"""Leakage: features that tell the arm, and features that are an outcome.

Neither can be in a feature that was recorded before the arm was drawn, once the propensities are taken into account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_budget.trial.dependence import dependence, list_dependence, totals
from lightning_budget.trial.distributions import two_sided_p
from lightning_budget.trial.levels import LevelSums, feature_sums
from lightning_budget.trial.logged import IdFeature, Logged
from lightning_budget.trial.outcomes import MAX_CORRELATION, OutcomeCopy, outcome_copies
from lightning_budget.trial.ranks import arm_auc
from lightning_budget.trial.verdict import Verdict, plain, probability

NAMED = 10
MAX_AUC = 0.55
MAX_INFORMATION = 0.004
"""Nats: about what an AUC of 0.55 amounts to, d² / 8 for two equal arms whose means lie d = 0.178 deviations apart."""
ALPHA = 1e-6


@dataclass(frozen=True)
class ArmLeak:
    """How well a feature tells an arm.

    Attributes:
        feature: its name, with the level for lists.
        arm: the arm it tells best.
        auc: of a number, that arm against all others, in [½, 1] whichever way it points.
        information: of ids, mutual information with the arm (nats).
        p_value, p_adjusted: without and with Bonferroni's correction over features × arms (numbers) and features (ids).
        leaks: beyond the thresholds of both size and probability.
    """

    feature: str
    arm: str
    p_value: float
    p_adjusted: float
    leaks: bool
    auc: float | None = None
    information: float | None = None


@dataclass(frozen=True)
class Leakage:
    """Features that know what they cannot know.

    Attributes:
        arms: leaks first, then by probability; at most ten, or all leaks.
        outcomes: features that repeat value or cost.
        tested: tests that ``p_adjusted`` counts.
    """

    arms: tuple[ArmLeak, ...]
    outcomes: tuple[OutcomeCopy, ...]
    tested: int
    correction: str = "bonferroni"
    max_auc: float = MAX_AUC
    max_information: float = MAX_INFORMATION
    threshold: float = ALPHA
    max_correlation: float = MAX_CORRELATION

    def verdict(self) -> Verdict:
        """Every leaking feature is named."""
        fix = "remove it from the features unless it is known before the arm is drawn"
        parts = []
        leaks = [leak for leak in self.arms if leak.leaks]
        if leaks:
            seen = "; ".join(f"{leak.feature!r} tells arm {leak.arm!r} ({_size(leak)})" for leak in leaks)
            parts.append(
                f"{seen} (thresholds AUC {self.max_auc:g}, {self.max_information:g} nats, p {self.threshold:g})"
            )
        if self.outcomes:
            seen = "; ".join(
                f"{c.feature!r} repeats {c.outcome} (correlation {c.correlation:.5f} in arm {c.arm!r})"
                for c in self.outcomes
            )
            parts.append(f"{seen} (threshold {self.max_correlation:g})")
        if parts:
            return Verdict(False, f"{'; '.join(parts)}; {fix}")
        if not self.arms:
            return Verdict(True, "no feature to look at")
        auc = max((leak.auc for leak in self.arms if leak.auc is not None), default=None)
        told = "" if auc is None else f", largest AUC {auc:.3f}"
        return Verdict(True, f"no feature tells the arm{told}, smallest {probability(self.arms[0].p_adjusted)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain(self)


def check_leakage(trial: Logged, sums: Mapping[str, LevelSums] | None = None) -> Leakage:
    """Look for features that tell the arm or repeat an outcome, one by one.

    Args:
        trial: N rows.
        sums: of the levels, by name of the id feature, where they are made already.
    """
    k = len(trial.arms)
    numbers = [*zip(trial.dense_names, trial.dense.unbind(1), strict=True)]
    numbers += [(f"{f.name} (entries)", n.float()) for f in trial.ids if (n := f.lengths()) is not None]
    tests = len(numbers) * k + len(trial.ids)
    found = [_of_number(trial, name, x, tests) for name, x in numbers]
    total = totals(trial) if trial.ids else None
    for feature in trial.ids:
        assert total is not None
        of_level = (sums or {}).get(feature.name) or feature_sums(trial, feature)
        found.append(_of_ids(trial, feature, of_level, total, tests))
    found.sort(key=lambda leak: (not leak.leaks, leak.p_adjusted, -(leak.auc or 0)))
    leaks = sum(leak.leaks for leak in found)
    return Leakage(tuple(found[: max(NAMED, leaks)]), tuple(outcome_copies(trial, numbers)), tests)


def _size(leak: ArmLeak) -> str:
    size = f"AUC {leak.auc:.3f}" if leak.auc is not None else f"{leak.information:.3g} nats"
    return f"{size}, {probability(leak.p_adjusted)}"


def _of_number(trial: Logged, name: str, x: Tensor, tests: int) -> ArmLeak:
    auc, error = arm_auc(trial, x)
    size = (auc - 0.5).abs()
    p = torch.where(error > 0, two_sided_p(size / error.clamp(min=1e-300)), torch.ones_like(size))
    # The arm that shows the largest effect that cannot be chance, else the least probable.
    adjusted = (p * tests).clamp(max=1)
    beyond = (size > MAX_AUC - 0.5) & (adjusted < ALPHA)
    j = int(torch.where(beyond, 1 + size, -p).argmax())
    return ArmLeak(name, trial.arms[j], float(p[j]), float(adjusted[j]), bool(beyond[j]), auc=0.5 + float(size[j]))


def _of_ids(trial: Logged, feature: IdFeature, sums: LevelSums, total: LevelSums, tests: int) -> ArmLeak:
    d = (dependence if feature.offsets is None else list_dependence)(trial, sums, total)
    adjusted = min(1.0, d.p_value * tests)
    leaks = d.information > MAX_INFORMATION and adjusted < ALPHA
    name = feature.name if d.level is None else feature.label(d.level)
    return ArmLeak(name, trial.arms[d.arm], d.p_value, adjusted, leaks, information=d.information)
