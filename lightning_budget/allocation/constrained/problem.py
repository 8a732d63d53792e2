"""What a constraint is, and the problem that several of them make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_budget.allocation.problem import check_predictions
from lightning_budget.errors import InputError


@dataclass(frozen=True)
class ReturnOnCost:
    r"""Usage of an ROI floor: incremental value over control less ρ times the incremental cost.

    .. math:: a_{ij} = (v_{ij} - v_{i0}) - \rho\,(c_{ij} - c_{i0})

    Attributes:
        floor: ρ, value per currency.
    """

    floor: float


@dataclass(frozen=True)
class Constraint:
    r"""One linear rule over all users, or one rule for each group of users.

    .. math:: \sum_{i \in g} \sum_{j \in T} a_{ij} z_{ij} \le b_g \quad\text{for every group } g

    Attributes:
        name: how results and errors call it.
        limit: :math:`b`, a number, or one for each group ``[G]``; in units of the usage, **total** over the users.
        usage: :math:`a`, ``[N, K]``, or ``[K]`` where it is the same for every user, or one number (1 counts users);
            ``None`` is the problem's cost.
        users: which users count: all, a mask ``[N]`` bool, or the group of each ``[N]`` int64, −1 for none.
        treatments: :math:`T`, which treatments count; ``None`` is all of them.
        at_least: the sum must reach the limit instead of keeping below it.
    """

    name: str
    limit: float | Tensor
    usage: Tensor | float | ReturnOnCost | None = None
    users: Tensor | None = None
    treatments: Sequence[int] | None = None
    at_least: bool = False

    @property
    def grouped(self) -> bool:
        """Whether the rule holds for each group of users on its own."""
        return isinstance(self.limit, Tensor) and self.limit.dim() == 1

    @property
    def groups(self) -> int:
        """G; 1 without groups."""
        return len(self.limit) if isinstance(self.limit, Tensor) and self.limit.dim() == 1 else 1


def budget(
    name: str, limit: float | Tensor, users: Tensor | None = None, treatments: Sequence[int] | None = None
) -> Constraint:
    """Spend at most ``limit`` on these users and treatments; see :class:`Constraint`."""
    return Constraint(name, limit, None, users, treatments)


def most_users(name: str, treatments: Sequence[int], limit: float | Tensor, users: Tensor | None = None) -> Constraint:
    """Give these treatments to at most ``limit`` users together; see :class:`Constraint`."""
    return Constraint(name, limit, 1.0, users, treatments)


def least_users(name: str, treatments: Sequence[int], limit: float | Tensor, users: Tensor | None = None) -> Constraint:
    """Give these treatments to at least ``limit`` users together; see :class:`Constraint`."""
    return Constraint(name, limit, 1.0, users, treatments, at_least=True)


def roi_floor(name: str, floor: float, users: Tensor | None = None) -> Constraint:
    r"""Incremental value over control of at least ``floor`` times the incremental cost.

    .. math:: \sum_i \Delta v_i \ge \rho \sum_i \Delta c_i

    Its usage and slack are :math:`\sum \Delta v - \rho \sum \Delta c`, in value units.
    """
    return Constraint(name, 0.0, ReturnOnCost(floor), users, None, at_least=True)


@dataclass(frozen=True)
class ConstrainedProblem:
    r"""One treatment per user under several constraints at once.

    .. math:: \max_z \sum_{ij} v_{ij} z_{ij} \quad\text{s.t.}\quad
        \sum_{ij} a_{mij} z_{ij} \le b_m \;\forall m,\; \sum_j z_{ij} = 1,\; z_{ij} \in \{0, 1\}

    Attributes:
        value: ``[N, K]`` floating, value units per user; treatment 0 is control.
        cost: ``[N, K]`` floating, currency per user.
        constraints: with different names.
        eligible: ``[N, K]`` bool, which treatments a user may get; ``None`` is all.
        must_treat: ``[N]`` bool, users who may not get control.
        never_treat: ``[N]`` bool, users who may get nothing but control.
        key: ``[N]`` int64, a different number for each user, such as an id: its hash breaks ties, so that the result
            does not depend on the order of the rows; ``None`` is the row's number.

    Raises:
        InputError: if a shape, type or device does not fit, a number is not finite, two constraints share a name, or a
            user is left without a treatment.
    """

    value: Tensor
    cost: Tensor
    constraints: Sequence[Constraint] = field(default_factory=tuple)
    eligible: Tensor | None = None
    must_treat: Tensor | None = None
    never_treat: Tensor | None = None
    key: Tensor | None = None

    def __post_init__(self) -> None:
        check_predictions(self.value, self.cost)
        users, arms = self.value.shape
        names = [c.name for c in self.constraints]
        for name in names:
            if names.count(name) > 1:
                raise InputError(
                    f"{names.count(name)} constraints are named {name!r}", "different names", "rename all but one"
                )
        for constraint in self.constraints:
            _check_constraint(constraint, self.value)
        _check_shape("eligible", self.eligible, (users, arms), torch.bool, self.value.device)
        _check_shape("must_treat", self.must_treat, (users,), torch.bool, self.value.device)
        _check_shape("never_treat", self.never_treat, (users,), torch.bool, self.value.device)
        _check_shape("key", self.key, (users,), torch.int64, self.value.device)
        allowed = self.allowed()
        if allowed is not None and not bool(allowed.any(dim=1).all()):
            user = int((~allowed.any(dim=1)).nonzero()[0])
            raise InputError(
                f"user {user} may get no treatment at all",
                "at least one that eligible, must_treat and never_treat all leave",
                "relax one of the three for this user, or leave the user out",
            )

    def allowed(self) -> Tensor | None:
        """``[N, K]`` bool, what all three masks leave; ``None`` where everything is allowed."""
        if self.eligible is None and self.must_treat is None and self.never_treat is None:
            return None
        allowed = torch.ones_like(self.value, dtype=torch.bool) if self.eligible is None else self.eligible.clone()
        if self.must_treat is not None:
            allowed[:, 0] &= ~self.must_treat
        if self.never_treat is not None:
            allowed[:, 1:] &= ~self.never_treat[:, None]
        return allowed


def _check_constraint(constraint: Constraint, value: Tensor) -> None:
    name, (users, arms) = constraint.name, value.shape
    limit = torch.as_tensor(constraint.limit, dtype=torch.float64)
    if limit.dim() > 1 or not limit.numel() or not bool(torch.isfinite(limit).all()):
        raise InputError(
            f"constraint {name!r}: limit={constraint.limit}",
            "a finite number, or a tensor [G] of them",
            "leave out a constraint without a limit",
        )
    for treatment in constraint.treatments or ():
        if not 0 <= treatment < arms:
            raise InputError(
                f"constraint {name!r}: treatment {treatment}", f"0 to {arms - 1}", "name columns of value and cost"
            )
    usage = constraint.usage
    if isinstance(usage, Tensor):
        if usage.shape not in (value.shape, value.shape[1:]):
            raise InputError(
                f"constraint {name!r}: usage has shape {list(usage.shape)}",
                f"[{users}, {arms}] or [{arms}]",
                "give the usage of every treatment",
            )
        if usage.device != value.device:
            raise InputError(
                f"constraint {name!r}: usage is on {usage.device}", f"{value.device}", "move it to where value is"
            )
        if not bool(torch.isfinite(usage).all()):
            raise InputError(
                f"constraint {name!r}: a usage is not finite", "finite numbers", "look for NaN or overflow"
            )
    elif usage is not None:
        number = usage.floor if isinstance(usage, ReturnOnCost) else usage
        if not math.isfinite(number):
            raise InputError(f"constraint {name!r}: {number} per user or currency", "a finite number", "give one")
    _check_groups(constraint, value)


def _check_groups(constraint: Constraint, value: Tensor) -> None:
    name, groups = constraint.name, constraint.users
    if not constraint.grouped:
        _check_shape(f"constraint {name!r}: users", groups, (len(value),), torch.bool, value.device)
        return
    if groups is None:
        raise InputError(
            f"constraint {name!r} has {constraint.groups} limits but no users",
            "the group of every user, [N] int64",
            "give users, or a single number as limit",
        )
    _check_shape(f"constraint {name!r}: users", groups, (len(value),), torch.int64, value.device)
    low, high = int(groups.min()), int(groups.max())
    if low < -1 or high >= constraint.groups:
        raise InputError(
            f"constraint {name!r}: groups from {low} to {high}",
            f"0 to {constraint.groups - 1}, or -1 for no group",
            "give a limit for every group",
        )


def _check_shape(name: str, x: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if x is not None and (x.shape != shape or x.dtype != dtype or x.device != device):
        raise InputError(
            f"{name} has shape {list(x.shape)}, dtype {x.dtype}, on {x.device}",
            f"{list(shape)}, {dtype}, on {device}",
            "one entry per user, where value is",
        )
