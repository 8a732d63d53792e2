"""Rows of two arms in order of a score: one sort, and prefix sums up to each distinct score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.columns import as_column

COST_FLOOR = 1e-6
"""Smallest |Δĉ| that a predicted ROI divides by."""


@dataclass(frozen=True)
class Ranking:
    """n rows of control and one other arm by falling score, in M groups of equal score.

    Attributes:
        row: ``[n]`` int64, position in the columns that were ranked; rows of other arms are left out.
        end: ``[M]`` int64, the last row of each group.
        treated: ``[n]`` bool.
    """

    row: Tensor
    end: Tensor
    treated: Tensor

    def take(self, column: Tensor) -> Tensor:
        """A column ``[…, N]`` in the order of the ranking, ``[…, n]``."""
        return column.index_select(-1, self.row)

    def sums(self, x: Tensor) -> Tensor:
        """Sums of ``x`` ``[…, n]`` over the rows down to the end of each group, ``[…, M]``."""
        return x.cumsum(-1).index_select(-1, self.end)


def predicted_roi(value_gain_hat: Tensor, cost_gain_hat: Tensor) -> Tensor:
    """Δv̂ / Δĉ, a Δĉ nearer to 0 than 1e-6 counting as that; ``[N]`` float64, value per currency.

    The sign of Δĉ is kept (0 counts as positive), so a row that is predicted to earn more at less cost comes last;
    give a score of your own where predicted costs fall.

    Args:
        value_gain_hat: ``[N]``, predicted value of the arm minus that of control.
        cost_gain_hat: ``[N]``, predicted cost of the arm minus that of control.

    Raises:
        InputError: if shapes differ or a prediction is not finite.
    """
    gain = as_column("value_gain_hat", value_gain_hat, value_gain_hat.numel())
    cost = as_column("cost_gain_hat", cost_gain_hat, len(gain))
    return gain / torch.where(cost < 0, cost.clamp(max=-COST_FLOOR), cost.clamp(min=COST_FLOOR))


def rank(score: Tensor, treatment: Tensor, arm: int | None = None) -> Ranking:
    """Sort the rows of control and of ``arm`` by falling score.

    Args:
        score: ``[N]``, finite, of any scale.
        treatment: ``[N]`` integers, 0 for control.
        arm: the arm compared with control; may be left out if 1 is the only one.

    Raises:
        InputError: if a column is misaligned or not finite, an arm is unknown, or one of the two has no rows.
    """
    score = as_column("score", score, score.numel())
    given = _arm(treatment, len(score), arm)
    kept = ((treatment == 0) | (treatment == given)).nonzero().squeeze(1)
    ordered, order = score[kept].sort(descending=True, stable=True)
    last = torch.ones_like(order, dtype=torch.bool)
    last[:-1] = ordered[1:] != ordered[:-1]
    row = kept[order]
    return Ranking(row, last.nonzero().squeeze(1), treatment[row] == given)


def _arm(treatment: Tensor, rows: int, arm: int | None) -> int:
    if treatment.shape != (rows,) or treatment.is_floating_point() or treatment.dtype == torch.bool:
        raise InputError(
            f"treatment has shape {list(treatment.shape)} and dtype {treatment.dtype}",
            f"integers of shape [{rows}]",
            "give the arm of each row as an int64 index",
        )
    if arm is not None and arm < 1:
        raise InputError(f"arm={arm}", "1 or more", "name the arm that is compared with control, 0")
    low, high = int(treatment.min()), int(treatment.max())
    if low < 0 or (arm is None and high > 1):
        raise InputError(
            f"treatments from {low} to {high}",
            "0 (control) and 1, or arms from 0 with arm=… given",
            "name the arm that is compared with control; rows of others are then left out",
        )
    given = 1 if arm is None else arm
    for needed in (0, given):
        if not bool((treatment == needed).any()):
            raise InputError(
                f"no rows with treatment {needed}", "rows of both arms", "check the split and the arm numbers"
            )
    return given
