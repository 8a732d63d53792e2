"""The doors of the metrics: what must hold of rows and predictions before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_budget.errors import InputError

Normalization = Literal["hajek", "ipw"]
"""``hajek``: Σ w y / Σ w, self-normalised; ``ipw``: Σ w y / N, unbiased."""


def check_shapes(value: Tensor, cost: Tensor, what: str) -> None:
    """Refuse response matrices that are not ``[N, K]`` with N ≥ 1, K ≥ 2, of one shape."""
    if value.ndim != 2 or value.shape != cost.shape or value.shape[0] < 1 or value.shape[1] < 2:
        raise InputError(
            f"{what} value has shape {list(value.shape)} and {what} cost {list(cost.shape)}",
            "two matrices [N, K] of one shape, at least 1 user and 2 treatments",
            "give one row per user and one column per treatment, control first",
        )


def check_responses(value: Tensor, cost: Tensor, what: str) -> None:
    """Refuse response matrices that are not finite, or of which :func:`check_shapes` refuses the shape."""
    check_shapes(value, cost, what)
    for name, matrix in (("value", value), ("cost", cost)):
        if not bool(torch.isfinite(matrix).all()):
            raise InputError(
                f"{int((~torch.isfinite(matrix)).sum())} entries of {what} {name} are not finite",
                "finite numbers",
                "look for missing values in the data or a diverged model",
            )


def check_policy(value_hat: Tensor, cost_hat: Tensor, true_value: Tensor, true_cost: Tensor) -> None:
    """Refuse predictions and truth unless both are responses of the same rows."""
    check_responses(value_hat, cost_hat, "predicted")
    check_responses(true_value, true_cost, "true")
    if value_hat.shape != true_value.shape:
        raise InputError(
            f"predictions have shape {list(value_hat.shape)}, the truth {list(true_value.shape)}",
            "one shape",
            "predict the rows whose truth is given",
        )


def check_treatment(treatment: Tensor, users: int, num_treatments: int) -> None:
    """Refuse treatments that are not ``[N]`` integers in 0 … K − 1."""
    if treatment.shape != (users,) or treatment.is_floating_point() or treatment.dtype == torch.bool:
        raise InputError(
            f"treatment has shape {list(treatment.shape)} and dtype {treatment.dtype}",
            f"integers of shape [{users}]",
            "give the arm of each row as an int64 index",
        )
    if users and (int(treatment.min()) < 0 or int(treatment.max()) >= num_treatments):
        raise InputError(
            f"treatments from {int(treatment.min())} to {int(treatment.max())}",
            f"0 to {num_treatments - 1}",
            "number the arms of the trial from 0, control first",
        )


def check_outcomes(value: Tensor, cost: Tensor, propensity: Tensor, users: int) -> None:
    """Refuse observed columns that are not finite ``[N]``, N ≥ 1, with propensities in (0, 1]."""
    if users < 1:
        raise InputError("0 rows", "at least 1", "check the split and the filter that made it")
    for name, column in (("value", value), ("cost", cost), ("propensity", propensity)):
        if column.shape != (users,):
            raise InputError(
                f"{name} has shape {list(column.shape)}",
                f"[{users}], one entry per row",
                f"align {name} with treatment",
            )
        if not bool(torch.isfinite(column).all()):
            raise InputError(
                f"{name} has entries that are not finite", "finite numbers", f"remove or mend rows without {name}"
            )
    if float(propensity.min()) <= 0 or float(propensity.max()) > 1:
        raise InputError(
            f"propensities from {float(propensity.min()):g} to {float(propensity.max()):g}",
            "above 0, at most 1",
            "give the probability with which the arm of the row was drawn",
        )


def check_user(user: Tensor, rows: int) -> None:
    """Refuse user identities that are not ``[N]`` int64."""
    if user.shape != (rows,) or user.dtype != torch.int64:
        raise InputError(
            f"user has shape {list(user.shape)} and dtype {user.dtype}",
            f"int64 of shape [{rows}]",
            "give one integer identity per row",
        )


def check_weight(weight: Tensor | None, rows: int) -> None:
    """Refuse sample weights that are not finite ``[N]``, at least 0 and not all 0; ``None`` is fine."""
    if weight is None:
        return
    if weight.shape != (rows,):
        raise InputError(f"weight has shape {list(weight.shape)}", f"[{rows}], one entry per row", "align it with rows")
    if not bool((torch.isfinite(weight) & (weight >= 0)).all()) or not bool((weight > 0).any()):
        raise InputError(
            f"sample weights from {float(weight.min()):g} to {float(weight.max()):g}",
            "finite, at least 0, not all 0",
            "leave out rows that do not count",
        )


def check_resamples(resamples: int, level: float = 0.95) -> None:
    """Refuse a bootstrap without resamples, and a level of intervals outside 0 … 1."""
    if resamples < 1:
        raise InputError(f"resamples={resamples}", "at least 1", "200 give an interval, 1000 a smooth one")
    if not 0 < level < 1:
        raise InputError(f"level={level}", "between 0 and 1", "0.95 is usual")


def check_normalization(normalization: str) -> None:
    """Refuse a normalisation that does not exist."""
    if normalization not in get_args(Normalization):
        raise InputError(
            f"normalization={normalization!r}", " or ".join(get_args(Normalization)), "pick one of the two"
        )


def as_budgets(budgets: Tensor | Sequence[float] | float, device: torch.device | None = None) -> Tensor:
    """Budgets per capita as a ``[B]`` float64 tensor; refuses none, NaN and budgets that are not above 0."""
    result = torch.as_tensor(budgets, dtype=torch.float64, device=device).reshape(-1)
    if result.numel() == 0 or not bool((result > 0).all()):
        raise InputError(
            f"budgets {result.tolist()}", "at least one, each above 0 (currency per user)", "give budgets per user"
        )
    return result
