"""Columns of rows: outcomes, scores and sample weights as float64, or an error that names what is wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_budget.errors import InputError


def as_column(name: str, column: Tensor, rows: int) -> Tensor:
    """A finite ``[N]`` column, N ≥ 1, as float64 without gradient; anything else is refused."""
    if rows < 1:
        raise InputError("0 rows", "at least 1", "check the split and the filter that made it")
    if column.shape != (rows,):
        raise InputError(
            f"{name} has shape {list(column.shape)}", f"[{rows}], one entry per row", f"align {name} with treatment"
        )
    missing = ~torch.isfinite(column)
    if bool(missing.any()):
        raise InputError(
            f"{int(missing.sum())} entries of {name} are not finite",
            "finite numbers",
            f"remove or mend rows without {name}",
        )
    return column.detach().double()


def as_propensity(propensity: Tensor, rows: int) -> Tensor:
    """``[N]`` float64 in (0, 1]."""
    result = as_column("propensity", propensity, rows)
    if float(result.min()) <= 0 or float(result.max()) > 1:
        raise InputError(
            f"propensities from {float(result.min()):g} to {float(result.max()):g}",
            "above 0, at most 1",
            "give the probability with which the arm of the row was drawn",
        )
    return result


def as_weight(weight: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Sample weights ``[N]`` or ``[R, N]`` ≥ 0 as float64; ones if none are given."""
    if weight is None:
        return torch.ones(rows, dtype=torch.float64, device=device)
    if weight.ndim not in (1, 2) or weight.shape[-1] != rows:
        raise InputError(
            f"weight has shape {list(weight.shape)}",
            f"[{rows}], or [R, {rows}] for R weightings of the rows",
            "align weight with treatment",
        )
    result = weight.detach().double()
    if not bool((torch.isfinite(result) & (result >= 0)).all()):
        raise InputError(
            f"{int((~(torch.isfinite(result) & (result >= 0))).sum())} weights are negative or not finite",
            "0 or more",
            "give how often a row counts",
        )
    return result


def as_row_weight(weight: Tensor | None, rows: int, device: torch.device) -> Tensor:
    """Sample weights ``[N]`` ≥ 0 as float64; ones if none are given."""
    result = as_weight(weight, rows, device)
    if result.ndim != 1:
        raise InputError(
            f"weight has shape {list(result.shape)}", f"[{rows}], one entry per row", "give one weighting at a time"
        )
    return result
