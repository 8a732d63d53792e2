"""Sample-ratio mismatch: were the arms given as often as their propensities say?

Where the probabilities P_i of all arms are known for every row (:mod:`~lightning_budget.trial.assignment`)::

    χ² = d' V⁻ d,    d_j = O_j − Σ_i P_ij,    V = Σ_i (diag P_i − P_i P_i'),    K − 1 degrees of freedom

which is Pearson's Σ (O − E)² / E for constant propensities. Else each arm's Σ 1[t_i = j] / p_i must be N::

    z_j = (Σ_{t_i = j} 1 / p_i − N) / √(N (m_j − 1)),    m_j = Σ w² / Σ w over the arm's rows, w = 1 / p

and the whole has the smallest p-value times K (Bonferroni). Where users have several rows, which may share an arm,
variances are multiplied by the design effect, measured on the trial, at least 1 (first-order correction of Rao and
Scott 1984, doi:10.1214/aos/1176346391). On the threshold: Fabijan et al. 2019, doi:10.1145/3292500.3330722.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_budget.trial.assignment import SUM, Assignment, Method, told_assignment
from lightning_budget.trial.distributions import ALPHA, bonferroni, chi_square_p, two_sided_p
from lightning_budget.trial.levels import LevelSums, feature_sums, level_sums
from lightning_budget.trial.logged import Logged
from lightning_budget.trial.verdict import Verdict, plain, probability

MIN_EXPECTED = 50.0
MIN_USERS = 20
NAMED = 10


@dataclass(frozen=True)
class ArmCount:
    """One arm: ``observed`` against ``expected`` rows; for the method ``ipw``, Σ 1 / p of its rows against N."""

    arm: str
    rows: int
    observed: float
    expected: float
    z: float
    p_value: float


@dataclass(frozen=True)
class StratumCount:
    """One level of an id feature; ``p_adjusted`` is times the number of strata (Bonferroni)."""

    stratum: str
    rows: int
    chi_square: float | None
    p_value: float
    p_adjusted: float
    worst_arm: str
    observed: float
    expected: float


@dataclass(frozen=True)
class SampleRatio:
    """Counts of arms against propensities.

    Attributes:
        method: how expected counts are known, see :class:`Assignment`; ``ipw``: by weights.
        told_by: the id feature that determines the propensities, for ``by_feature``.
        propensity_sum: sum of the arms' constant propensities; 1 in a sound trial.
        rows, users: size.
        design_effect: variance of the counts relative to independent rows.
        chi_square, df: of the whole trial; ``None`` for ``ipw``.
        p_value: of the whole trial.
        arms: one by one, control first.
        strata: the worst ten; strata_tested: their number; strata_skipped: levels too small for the approximation
            (fewer than 50 rows expected in an arm, or fewer than 20 users).
        correction, threshold: ``bonferroni`` over strata; a warning where a probability is below the threshold.
    """

    method: Method
    told_by: str | None
    propensity_sum: float
    rows: int
    users: int
    design_effect: float
    chi_square: float | None
    df: int | None
    p_value: float
    arms: tuple[ArmCount, ...]
    strata: tuple[StratumCount, ...]
    strata_tested: int
    strata_skipped: int
    correction: str = "bonferroni"
    threshold: float = ALPHA

    def verdict(self) -> Verdict:
        """The whole trial first, then the strata."""
        fix = "look for rows lost after assignment, bots, or wrong propensities"
        if abs(self.propensity_sum - 1) > SUM:
            return Verdict(
                False,
                f"propensities of the arms sum to {self.propensity_sum:.4g} (must be 1 ± {SUM:g}); "
                "give the probability of the arm given, not of another",
            )
        worst = max(self.arms, key=lambda a: abs(a.z))
        what = "rows" if self.method != "ipw" else "rows by inverse propensity"
        seen = f"arm {worst.arm!r} has {worst.observed:,.0f} {what} of {worst.expected:,.0f} expected"
        if self.p_value < self.threshold:
            return Verdict(False, f"{seen}, {probability(self.p_value)} (threshold {self.threshold:g}); {fix}")
        if self.strata and self.strata[0].p_adjusted < self.threshold:
            s = self.strata[0]
            return Verdict(
                False,
                f"stratum {s.stratum}: arm {s.worst_arm!r} has {s.observed:,.0f} {what} of {s.expected:,.0f} expected, "
                f"{probability(s.p_adjusted)} over {self.strata_tested} strata (threshold {self.threshold:g}); {fix}",
            )
        strata = f", smallest of {self.strata_tested} strata p = {self.strata[0].p_adjusted:.2g}" if self.strata else ""
        return Verdict(True, f"counts of the arms agree with propensities, {probability(self.p_value)}{strata}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain(self)


def check_sample_ratio(trial: Logged, sums: Mapping[str, LevelSums] | None = None) -> SampleRatio:
    """Test the counts of arms, in the whole trial and at every level of the id features that are not lists.

    Args:
        trial: N rows.
        sums: of the levels, by name of the id feature, where they are made already.
    """
    n, assignment = len(trial), told_assignment(trial)
    total = level_sums(trial, torch.zeros(n, dtype=torch.int64), 1)
    whole = _counts(trial, assignment, torch.zeros(n, dtype=torch.int64), total)
    z, arm_p = whole.z[0], two_sided_p(whole.z[0])
    arms = tuple(
        ArmCount(name, int(total.count[0, j]), *(float(x[j]) for x in (whole.observed[0], whole.expected[0], z, arm_p)))
        for j, name in enumerate(trial.arms)
    )
    found: list[StratumCount] = []
    tested = skipped = 0
    for feature in trial.ids:
        if feature.offsets is not None:
            continue
        of_level = (sums or {}).get(feature.name) or feature_sums(trial, feature)
        counts = _counts(trial, assignment, feature.values, of_level)
        large = (counts.smallest >= MIN_EXPECTED) & (of_level.clusters >= MIN_USERS)
        skipped += int(((of_level.rows > 0) & ~large).sum())
        index = large.nonzero().flatten()
        tested += len(index)
        for level in index[counts.p[index].argsort()[:NAMED]].tolist():
            j = int(counts.z[level].abs().argmax())
            found.append(
                StratumCount(
                    feature.label(level),
                    int(of_level.rows[level]),
                    None if counts.chi_square is None else float(counts.chi_square[level]),
                    float(counts.p[level]),
                    1.0,
                    trial.arms[j],
                    float(counts.observed[level, j]),
                    float(counts.expected[level, j]),
                )
            )
    found.sort(key=lambda s: s.p_value)
    strata_named = tuple(replace(s, p_adjusted=min(1.0, s.p_value * tested)) for s in found[:NAMED])
    return SampleRatio(
        method=assignment.method,
        told_by=assignment.feature,
        propensity_sum=assignment.sum,
        rows=n,
        users=trial.clusters,
        design_effect=float(total.design_effect()[0]) if trial.cluster is not None else 1.0,
        chi_square=None if whole.chi_square is None else float(whole.chi_square[0]),
        df=None if whole.df is None else int(whole.df[0]),
        p_value=float(whole.p[0]),
        arms=arms,
        strata=strata_named,
        strata_tested=tested,
        strata_skipped=skipped,
    )


@dataclass(frozen=True)
class _Counts:
    """Of L strata: ``[L, K]`` observed, expected and z; ``[L]`` the rest. ``smallest`` rows expected in an arm."""

    observed: Tensor
    expected: Tensor
    z: Tensor
    p: Tensor
    smallest: Tensor
    chi_square: Tensor | None = None
    df: Tensor | None = None


def _counts(trial: Logged, assignment: Assignment, stratum: Tensor, sums: LevelSums) -> _Counts:
    effect = sums.design_effect() if trial.cluster is not None else torch.ones_like(sums.own)
    if assignment.method == "ipw":
        return _by_weights(trial, stratum, sums, effect)
    observed = sums.count.double()
    levels, k = observed.shape
    expected = torch.empty_like(observed)
    cell = stratum.new_zeros(len(trial)) if assignment.method == "constant" else assignment.cell
    table = assignment.table
    for j in range(k):
        expected[:, j] = torch.bincount(stratum, weights=table[cell, j], minlength=levels)
    if assignment.method == "constant":
        # One product instead of a sum of N equal terms keeps whole numbers whole.
        expected = sums.rows.double()[:, None] * table[0]
        variance = expected * (1 - table[0])
        possible = expected > 0
        terms = (observed - expected).square() / expected.clamp(min=1e-300)
        chi_square = torch.where(possible, terms, torch.zeros_like(terms)).sum(1)
        df = possible.sum(1) - 1
    else:
        covariance = torch.empty(levels, k, k, dtype=torch.float64)
        for i in range(k):
            for j in range(i, k):
                p = table[cell, i] * (float(i == j) - table[cell, j])
                covariance[:, i, j] = covariance[:, j, i] = torch.bincount(stratum, weights=p, minlength=levels)
        variance = covariance.diagonal(dim1=1, dim2=2)
        chi_square, df = _quadratic(observed - expected, covariance)
    impossible = ((expected <= 0) & (observed > 0)).any(1)
    chi_square = torch.where(impossible, torch.full_like(chi_square, 1e308), chi_square / effect)
    z = (observed - expected) / (variance * effect[:, None]).clamp(min=1e-300).sqrt()
    z = torch.where(observed == expected, torch.zeros_like(z), z)
    seen = torch.where(expected > 0, expected, torch.full_like(expected, math.inf)).amin(1)
    smallest = torch.where(seen.isinf(), torch.zeros_like(seen), seen)
    return _Counts(observed, expected, z, chi_square_p(chi_square, df.double()), smallest, chi_square, df)


def _by_weights(trial: Logged, stratum: Tensor, sums: LevelSums, effect: Tensor) -> _Counts:
    levels, k = sums.count.shape
    key = stratum * k + trial.treatment
    total = torch.bincount(key, weights=trial.weight, minlength=levels * k).view(levels, k)
    square = torch.bincount(key, weights=trial.weight.square(), minlength=levels * k).view(levels, k)
    rows = sums.rows.double()[:, None]
    # An arm that a level lacks has the mean weight of the whole trial there.
    elsewhere = (1 / trial.mean_share()).expand_as(total)
    mean_weight = torch.where(total > 0, square / total.clamp(min=1e-300), elsewhere)
    variance = rows * (mean_weight - 1) * effect[:, None]
    z = (total - rows) / variance.clamp(min=1e-300).sqrt()
    z = torch.where(total == rows, torch.zeros_like(z), z)
    p = bonferroni(two_sided_p(z).amin(1), k)
    return _Counts(total, rows.expand_as(total), z, p, (rows / mean_weight).amin(1))


def _quadratic(d: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """``[L]`` d' V⁻ d and the rank of V (``[L, K, K]``), which has the null vector of ones."""
    value, vector = torch.linalg.eigh(covariance)
    kept = value > 1e-10 * value.amax(1, keepdim=True).clamp(min=1e-300)
    along = torch.einsum("lk,lkm->lm", d, vector).square() / value.clamp(min=1e-300)
    return torch.where(kept, along, torch.zeros_like(along)).sum(1), kept.sum(1)
