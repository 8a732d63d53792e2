"""Rows that cannot be used, counted by kind before a table is made of them: refused, or left out when asked to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.trial.distributions import ALPHA, chi_square_p
from lightning_budget.trial.verdict import Verdict, plain, probability

Kind = Literal["missing_outcome", "zero_propensity", "invalid_propensity", "unknown_arm", "negative_cost"]
MEANING: dict[Kind, str] = {
    "missing_outcome": "value or cost is null, NaN or infinite",
    "zero_propensity": "propensity 0",
    "invalid_propensity": "propensity null, NaN, below 0 or above 1",
    "unknown_arm": "an arm that is not among the arms named, or none",
    "negative_cost": "cost below 0",
}
KINDS: tuple[Kind, ...] = tuple(MEANING)
Raw = NDArray[Any] | Tensor | Sequence[Any]


@dataclass(frozen=True)
class RowKind:
    """One kind of unusable row: how many, the first (from 0; ``None``: no such row), how many in each known arm."""

    kind: Kind
    count: int
    first_row: int | None
    by_arm: dict[str, int]


@dataclass(frozen=True)
class Rows:
    """What became of the rows of a trial.

    Attributes:
        total, kept: rows given, and left.
        kinds: all of them, those without rows too; a row may be of several.
        exclude: the kinds left out.
        excluded: rows left out, each counted once.
        attrition_p: probability that exclusions (other than unknown arms) hit arms this unevenly by chance: chi-square
            of arm × excluded; 1 where there are none. Exclusions that depend on the arm bias every comparison of arms.
        threshold: a warning where that is below it.
    """

    total: int
    kept: int
    kinds: tuple[RowKind, ...]
    exclude: tuple[Kind, ...]
    excluded: int
    attrition_p: float
    threshold: float = ALPHA

    def verdict(self) -> Verdict:
        """How many rows were left out, and whether of all arms alike."""
        if not self.excluded:
            return Verdict(True, f"all {self.total:,} rows can be used")
        seen = ", ".join(f"{k.count:,} {k.kind}" for k in self.kinds if k.count)
        text = f"{self.excluded:,} of {self.total:,} rows left out as asked ({seen})"
        if self.attrition_p < self.threshold:
            return Verdict(
                False,
                f"{text}, not of all arms alike: {probability(self.attrition_p)} (threshold {self.threshold:g}); "
                "find out why outcomes are missing before comparing arms",
            )
        return Verdict(True, f"{text}, of all arms alike, {probability(self.attrition_p)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``first_row`` is absent where there is no such row."""
        return plain(self)


def screen_rows(
    treatment: Raw,
    value: Raw,
    propensity: Raw,
    arms: Sequence[str],
    cost: Raw | None = None,
    exclude: Sequence[Kind] = (),
) -> tuple[NDArray[np.bool_], Rows]:
    """Count the rows that no estimate can use, and refuse them or leave them out.

    Args:
        treatment: N labels out of ``arms``, or whole numbers 0 … K − 1; null, NaN, and all else are unknown arms.
        value, propensity: N numbers; null is NaN.
        arms: K names, control first.
        cost: N numbers; ``None`` where every arm's cost is known beforehand.
        exclude: kinds of rows to leave out; rows of other kinds are refused.

    Returns:
        ``[N]`` rows to keep, and the counts. An excluded row counts with all its kinds.

    Raises:
        InputError: naming how many rows of each kind there are and the first of them; for columns of other lengths,
            unknown kinds, and if no row is left.
    """
    unknown_kinds = [k for k in exclude if k not in KINDS]
    if unknown_kinds:
        raise InputError(f"exclude={list(exclude)}", ", ".join(KINDS), f"leave {unknown_kinds[0]!r} out")
    arm = _arms(treatment, arms)
    n = len(arm)
    y, p = _numbers("value", value, n), _numbers("propensity", propensity, n)
    c = np.zeros(n) if cost is None else _numbers("cost", cost, n)
    with np.errstate(invalid="ignore"):
        found: dict[Kind, NDArray[np.bool_]] = {
            "missing_outcome": ~(np.isfinite(y) & np.isfinite(c)),
            "zero_propensity": p == 0,
            "invalid_propensity": ~((p >= 0) & (p <= 1)),
            "unknown_arm": arm < 0,
            "negative_cost": (c < 0) & np.isfinite(c),
        }
    wanted: tuple[Kind, ...] = tuple(k for k in KINDS if k in exclude)
    left_out, refused = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    for kind, rows in found.items():
        (left_out if kind in wanted else refused)[rows] = True
    # A row left out for one reason is not refused for another.
    refused &= ~left_out
    kinds = tuple(_kind(kind, rows, arm, arms) for kind, rows in found.items())
    if refused.any():
        raise _refusal(found, refused, n, wanted)
    if not n or left_out.all():
        raise InputError(
            f"no row is left of {n:,}", "at least 1 usable row", "check what the columns mean, or exclude fewer kinds"
        )
    rows = Rows(n, n - int(left_out.sum()), kinds, wanted, int(left_out.sum()), _attrition(left_out, arm, len(arms)))
    return ~left_out, rows


def _numbers(name: str, column: Raw, n: int) -> NDArray[np.float64]:
    try:
        x = np.asarray(column, dtype=np.float64)
    except (TypeError, ValueError) as e:
        raise InputError(f"{name} cannot be read as numbers ({e})", "numbers, null or NaN", f"convert {name}") from e
    if x.shape != (n,):
        raise InputError(f"{name} has shape {list(x.shape)}", f"[{n}], as treatment has", f"align {name} with it")
    return x


def _arms(treatment: Raw, arms: Sequence[str]) -> NDArray[np.int64]:
    """``[N]`` positions in ``arms``, −1 for all else."""
    t = np.asarray(treatment)
    if t.ndim != 1:
        raise InputError(f"treatment has shape {list(t.shape)}", "[N]", "give one arm a row")
    if t.dtype.kind in "iu":
        return np.where((t >= 0) & (t < len(arms)), t, -1).astype(np.int64)
    if t.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            known = (t >= 0) & (t < len(arms)) & (t == np.floor(t))
        return np.where(known, np.nan_to_num(t, nan=-1.0, posinf=-1.0, neginf=-1.0), -1).astype(np.int64)
    code = np.full(len(t), -1, dtype=np.int64)
    for j, name in enumerate(arms):
        code[t == name] = j
    return code


def _kind(kind: Kind, rows: NDArray[np.bool_], arm: NDArray[np.int64], arms: Sequence[str]) -> RowKind:
    count = int(rows.sum())
    by_arm = np.bincount(arm[rows & (arm >= 0)], minlength=len(arms)).tolist()
    first = int(rows.argmax()) if count else None
    return RowKind(kind, count, first, dict(zip(arms, by_arm, strict=True)))


def _refusal(
    found: dict[Kind, NDArray[np.bool_]], refused: NDArray[np.bool_], n: int, wanted: tuple[Kind, ...]
) -> InputError:
    named: dict[Kind, NDArray[np.bool_]] = {
        kind: rows & refused for kind, rows in found.items() if (rows & refused).any()
    }
    seen = "; ".join(
        f"{int(rows.sum()):,} rows of {n:,} with {kind} ({MEANING[kind]}), the first is row {int(rows.argmax())}"
        for kind, rows in named.items()
    )
    option = ", ".join([*wanted, *named])
    return InputError(
        seen,
        "a finite value and cost, cost ≥ 0, propensity in (0, 1] and a known arm in every row",
        f"mend them, or leave them out by exclude=[{option}]",
    )


def _attrition(left_out: NDArray[np.bool_], arm: NDArray[np.int64], k: int) -> float:
    known = arm >= 0
    rows = np.bincount(arm[known], minlength=k).astype(np.float64)
    lost = np.bincount(arm[known & left_out], minlength=k).astype(np.float64)
    here = rows > 0
    share = lost.sum() / rows.sum() if rows.sum() else 0.0
    if not 0 < share < 1:
        return 1.0
    chi_square = ((lost - rows * share)[here] ** 2 / (rows * share * (1 - share))[here]).sum()
    return float(chi_square_p(torch.tensor(chi_square), float(here.sum() - 1)))
