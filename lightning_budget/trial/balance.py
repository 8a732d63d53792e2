"""Covariate balance: do the arms have the same features, as randomization makes them?

For arm j against control 0 and a column x, standardised over all rows, with w = 1 / p and W_j = Σ_{t = j} w::

    SMD_j = Σ_{t = j} w x / W_j − Σ_{t = 0} w x / W_0 = Σ_u φ_u
    φ_u = Σ_{i of user u} (1[t = j] / W_j − 1[t = 0] / W_0) w x
    z_j = SMD_j / √(Σ_u φ_u²),    χ²_j = SMD_j' (Σ_u φ_u φ_u')⁻ SMD_j over all columns together

Variances are those under the hypothesis of no difference, so that the columns are centred at the mean of all rows; the
rows of one user may be dependent. Source: Hansen and Bowers 2008, doi:10.1214/08-STS254; here with weights 1 / p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_budget.trial.columns import Columns, feature_columns
from lightning_budget.trial.distributions import ALPHA, bonferroni, chi_square_p, two_sided_p
from lightning_budget.trial.logged import Logged
from lightning_budget.trial.verdict import Verdict, plain, probability

NAMED = 10
MIN_CARRIERS = 10.0
"""A normal approximation wants the variance of a difference spread over as many users: (Σ φ²)² / Σ φ⁴."""


@dataclass(frozen=True)
class Difference:
    """One column of one arm against control: ``smd`` in standard deviations of all rows."""

    feature: str
    arm: str
    smd: float
    z: float
    p_value: float
    p_adjusted: float


@dataclass(frozen=True)
class ArmBalance:
    """All columns of one arm against control together."""

    arm: str
    chi_square: float
    df: int
    p_value: float


@dataclass(frozen=True)
class Balance:
    """Differences of features between arms.

    Attributes:
        worst: the ten of the largest ``z``, largest first.
        arms: chi-square of each arm against control.
        p_value: the smallest of the arms' times their number (Bonferroni).
        largest_smd: largest ``smd`` among those tested, in absolute value.
        tested: tests of single columns; ``p_adjusted`` is times their number (Bonferroni).
        untested: constant columns, and those whose difference hangs on fewer than 10 users.
        threshold: a warning where a corrected probability is below it.
    """

    worst: tuple[Difference, ...]
    arms: tuple[ArmBalance, ...]
    p_value: float
    largest_smd: float
    tested: int
    untested: int
    correction: str = "bonferroni"
    threshold: float = ALPHA

    def verdict(self) -> Verdict:
        """Single columns first, then all together."""
        fix = "check that arms were drawn at random and that features were recorded before them"
        if not self.worst:
            return Verdict(True, "no feature to compare")
        d = self.worst[0]
        if d.p_adjusted < self.threshold:
            return Verdict(
                False,
                f"feature {d.feature!r} differs by {d.smd:+.3g} standard deviations between {d.arm!r} and control, "
                f"{probability(d.p_adjusted)} over {self.tested} tests (threshold {self.threshold:g}); {fix}",
            )
        if self.p_value < self.threshold:
            a = min(self.arms, key=lambda a: a.p_value)
            return Verdict(
                False,
                f"features together differ between {a.arm!r} and control, χ² = {a.chi_square:.4g} with {a.df} degrees "
                f"of freedom, {probability(self.p_value)} (threshold {self.threshold:g}); {fix}",
            )
        return Verdict(
            True,
            f"features agree between arms, largest difference {self.largest_smd:.2g} standard deviations, "
            f"{probability(self.p_value)} together",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain(self)


def check_balance(trial: Logged) -> Balance:
    """Compare the features of every arm with control's; arms without rows are left out."""
    columns = feature_columns(trial)
    rows = trial.arm_rows()
    arms = [j for j in range(1, len(trial.arms)) if rows[j] > 0] if rows[0] > 0 else []
    width = len(columns.names)
    if not arms or not width:
        return Balance((), (), 1.0, 0.0, 0, 0)
    smd, covariance, fourth = _moments(trial, columns, arms)
    variance = covariance.diagonal(dim1=1, dim2=2)
    carriers = variance.square() / fourth.clamp(min=1e-300)
    usable = (columns.std > 0) & (variance > 0) & (carriers >= MIN_CARRIERS)
    z = torch.where(usable, smd / variance.clamp(min=1e-300).sqrt(), torch.zeros_like(smd))
    tested = int(usable.sum())
    p = two_sided_p(z)
    adjusted = bonferroni(p, tested)
    order = torch.where(usable, z.abs(), torch.full_like(z, -1)).flatten().argsort(descending=True)
    worst = []
    for flat in order[: min(NAMED, tested)].tolist():
        a, m = divmod(flat, width)
        numbers = (float(x[a, m]) for x in (smd, z, p, adjusted))
        worst.append(Difference(columns.names[m], trial.arms[arms[a]], *numbers))
    together = []
    for a, j in enumerate(arms):
        chi_square, df = _quadratic(smd[a][usable[a]], covariance[a][usable[a]][:, usable[a]])
        p_arm = float(chi_square_p(chi_square, float(df)))
        together.append(ArmBalance(trial.arms[j], float(chi_square), df, p_arm))
    return Balance(
        worst=tuple(worst),
        arms=tuple(together),
        p_value=min(1.0, len(arms) * min(a.p_value for a in together)),
        largest_smd=float(torch.where(usable, smd.abs(), torch.zeros_like(smd)).max()),
        tested=tested,
        untested=usable.numel() - tested,
    )


def _moments(trial: Logged, columns: Columns, arms: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of the arms ``arms`` against control: ``[A, M]`` Σ φ, ``[A, M, M]`` Σ φ φ' and ``[A, M]`` Σ φ⁴."""
    k, width = len(trial.arms), len(columns.names)
    scale = 1 / trial.arm_sums(trial.weight).clamp(min=1e-300)
    if trial.cluster is None:
        mean = torch.zeros(k, width, dtype=torch.float64)
        outer, fourth = torch.zeros(k, width, width, dtype=torch.float64), mean.clone()
        for rows in trial.chunks():
            t = trial.treatment.index_select(0, rows)
            x = columns.of_rows(trial, rows) * (trial.weight.index_select(0, rows) * scale[t])[:, None]
            for j in range(k):
                # A row has one arm: nothing of arm j and control in common.
                part = x[t == j]
                mean[j] += part.sum(0)
                outer[j] += part.T @ part
                fourth[j] += part.square_().square_().sum(0)
        against = torch.tensor(arms)
        return mean[against] - mean[0], outer[against] + outer[0], fourth[against] + fourth[0]
    smd = torch.zeros(len(arms), width, dtype=torch.float64)
    covariance, fourth = torch.zeros(len(arms), width, width, dtype=torch.float64), smd.clone()
    for rows in trial.chunks():
        t = trial.treatment.index_select(0, rows)
        x = columns.of_rows(trial, rows) * (trial.weight.index_select(0, rows) * scale[t])[:, None]
        user = trial.cluster.index_select(0, rows)
        new = (user[1:] != user[:-1]).long()
        place = torch.cat([new.new_zeros(1), new.cumsum(0)])
        users = int(place[-1]) + 1
        sums = torch.zeros(k * users, width, dtype=torch.float64).index_add_(0, t * users + place, x)
        sums = sums.view(k, users, width)
        for a, j in enumerate(arms):
            phi = sums[j] - sums[0]
            smd[a] += phi.sum(0)
            covariance[a] += phi.T @ phi
            fourth[a] += phi.square_().square_().sum(0)
    return smd, covariance, fourth


def _quadratic(d: Tensor, covariance: Tensor) -> tuple[Tensor, int]:
    """The form d' V⁻ d and the rank of V (``[M, M]``): indicators of one feature sum to a constant."""
    if len(d) == 0:
        return d.new_zeros(()), 0
    scale = covariance.diagonal().sqrt()
    value, vector = torch.linalg.eigh(covariance / scale[:, None] / scale[None, :])
    kept = value > 1e-8 * value[-1]
    along = ((d / scale) @ vector)[kept].square() / value[kept]
    return along.sum(), int(kept.sum())
