"""Do the arms come as often as the propensities say? Asked before anything is trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.data.columns import ESTIMATED, TableColumns
from lightning_budget.data.files import File
from lightning_budget.data.outcomes import propensity_of, treatment_of, weight_of
from lightning_budget.errors import InputError
from lightning_budget.table import RCTTable
from lightning_budget.trial.assignment import SUM
from lightning_budget.trial.distributions import bonferroni, two_sided_p
from lightning_budget.trial.logged import Logged, logged_trial
from lightning_budget.trial.sample_ratio import check_sample_ratio
from lightning_budget.trial.verdict import probability

LEVEL = 1e-6
"""One sound trial in a million is refused."""
MIN_EXPECTED = 10.0


@dataclass(frozen=True)
class Assignments:
    """Who was given what: ``[N]`` each; no ``user``: every row is its own; ``weight``: sample weights, if any."""

    treatment: Tensor
    propensity: Tensor
    user: Tensor | None
    weight: Tensor | None

    @classmethod
    def of_table(cls, table: RCTTable, own_users: bool = False) -> Assignments:
        """Those of all rows; ``own_users``: every row is known to be a user of its own."""
        return cls(table.treatment, table.propensity, None if own_users else table.user, table.weight)

    @classmethod
    def of_file(cls, file: File, columns: TableColumns) -> Assignments:
        """Those of all rows, whatever became of outcomes and features; not of estimated propensities.

        Raises:
            InputError: for anything amiss in treatment, propensity, user and weight.
        """
        treatment, weight = treatment_of(file, columns), weight_of(file, columns)
        user = None if columns.user is None else torch.from_numpy(file[columns.user].users())
        return cls(
            torch.from_numpy(treatment),
            torch.from_numpy(propensity_of(file, columns, treatment)),
            user,
            None if weight is None else torch.from_numpy(weight),
        )


def checks_shares(columns: TableColumns, level: float) -> bool:
    """Is there something to test: a level above 0, and propensities that are not estimated on the trial itself.

    Raises:
        InputError: for a level that is none.
    """
    if not 0 <= level < 1:
        raise InputError(f"check_shares={level}", "a level in [0, 1), e.g. 1e-6; 0: no test", "set it to one")
    return level > 0 and columns.propensity != ESTIMATED


def check_arm_shares(given: Assignments, arms: tuple[str, ...], name: str, level: float = LEVEL) -> None:
    """Refuse propensities that the counts of the arms contradict.

    Without sample weights by :func:`~lightning_budget.trial.check_sample_ratio`, over all rows; with weights w each
    arm's Σ w / p against Σ w, with variance Σ w² (1 / p − 1), the smallest probability times K. The rows of a user may
    depend on each other. Where fewer than 10 rows of an arm are expected nothing is tested.

    Args:
        name: of the file, for the error.
        level: refuse below this probability.

    Raises:
        InputError: for counts so far off.
    """
    trial = logged_trial(arms, given.treatment, given.propensity, given.propensity, given.propensity, user=given.user)
    if float(trial.mean_share().min()) * len(trial) < MIN_EXPECTED:
        return
    ratio = check_sample_ratio(trial)
    weight = torch.ones(len(trial)) if given.weight is None else given.weight
    p = _weighted(weight.double(), trial, ratio.design_effect)
    if given.weight is None:
        # The test by counts, which is the sharper one, scales constant propensities to sum to 1.
        p = min(p, ratio.p_value) if abs(ratio.propensity_sum - 1) > SUM else ratio.p_value
    if p >= level:
        return
    worst = max(ratio.arms, key=lambda arm: abs(arm.z))
    what = "rows" if ratio.method != "ipw" else "rows by inverse propensity"
    share = (trial.arm_rows() / len(trial)).tolist()
    total = f"those of the arms sum to {ratio.propensity_sum:.4g}, " if abs(ratio.propensity_sum - 1) > SUM else ""
    raise InputError(
        f"{name}: propensities do not match the arms given: {total}arm {worst.arm!r} has {worst.observed:,.0f} {what}, "
        f"{worst.expected:,.0f} expected, {probability(p)} (level {level:g}); shares of rows: "
        + ", ".join(f"{arm} {s:.3g}" for arm, s in zip(arms, share, strict=True)),
        "the propensities with which the arms were drawn",
        "correct data.propensity, look for rows lost after assignment, or go on regardless with data.check_shares=0",
    )


def _weighted(weight: Tensor, trial: Logged, effect: float) -> float:
    share = trial.mean_share()
    total = torch.bincount(trial.treatment, weights=weight * trial.weight, minlength=len(share))
    variance = weight.square().sum() * (1 / share - 1) * effect
    z = (total - weight.sum()) / variance.clamp(min=1e-300).sqrt()
    return float(bonferroni(two_sided_p(z).amin(), len(share)))
