"""The constraints of a problem as rows of one matrix that is never held: some users at a time, arms first, float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.problem import ConstrainedProblem, Constraint, ReturnOnCost

_CPU_ENTRIES = 1 << 20
_DEVICE_ENTRIES = 1 << 25


@dataclass(frozen=True)
class Block:
    """Some users with everything that is asked of them.

    A limit is an ``at most``: rows that were ``at least`` have their signs turned. R constraints hold P limits, one
    for each group of each constraint.

    Attributes:
        value: ``[K, n]`` float64, −inf for a treatment the user may not get.
        usage: ``[R, K, n]`` float64, 0 where the user is in no group of the constraint.
        index: ``[R, n]`` int64, which of the P limits the user counts for.
        limit: ``[P]`` float64.
        sizes: groups of each of the R constraints; limits of a constraint lie side by side.
    """

    value: Tensor
    usage: Tensor
    index: Tensor
    limit: Tensor
    sizes: tuple[int, ...]

    def scores(self, multiplier: Tensor) -> Tensor:
        r"""``[K, n]``: :math:`v_{ij} - \sum_m \lambda_m a_{mij}` for multipliers ``[P]``."""
        score = self.value.clone()
        for usage, price in zip(self.usage, multiplier[self.index], strict=True):
            score.addcmul_(usage, price[None], value=-1)
        return score

    def used(self, usage: Tensor) -> Tensor:
        """``[P]``: sums of ``[R, n]`` over the users of each group, in float64."""
        total = torch.zeros_like(self.limit)
        return total.index_add_(0, self.index.reshape(-1), usage.reshape(-1)) if len(usage) else total

    def given(self, treatment: Tensor) -> Tensor:
        """``[R, n]``: the usage of one treatment ``[n]`` per user."""
        return self.usage.gather(1, treatment.expand(len(self.usage), 1, -1))[:, 0]

    def part(self, users: Tensor, limit: Tensor) -> Block:
        """The block of these users under other limits."""
        return replace(
            self,
            value=self.value[:, users],
            usage=self.usage[:, :, users],
            index=self.index[:, users],
            limit=limit,
        )

    def cpu(self) -> Block:
        """The block where small steps cost least."""
        return replace(
            self, value=self.value.cpu(), usage=self.usage.cpu(), index=self.index.cpu(), limit=self.limit.cpu()
        )


class Rows:
    """All users of a problem; see :class:`Block` for the form.

    Attributes:
        names: of the P limits, the constraint's name with its group in brackets where it has groups.
        constraint: ``P`` numbers, which constraint each limit belongs to.
        sign: ``[P]`` float64, −1 where the constraint is an ``at least``.
        limit: ``[P]`` float64, signs turned.
        allowed: ``[N, K]`` bool or ``None``.
    """

    def __init__(self, problem: ConstrainedProblem) -> None:
        self._problem = problem
        self.users, self.arms = problem.value.shape
        self.device = problem.value.device
        self.allowed = problem.allowed()
        self.sizes = tuple(c.groups for c in problem.constraints)
        self.names = [f"{c.name}[{g}]" if c.grouped else c.name for c in problem.constraints for g in range(c.groups)]
        self.constraint = [r for r, c in enumerate(problem.constraints) for _ in range(c.groups)]
        signs = [-1.0 if c.at_least else 1.0 for c in problem.constraints for _ in range(c.groups)]
        limits = [torch.as_tensor(c.limit, dtype=torch.float64).reshape(-1).cpu() for c in problem.constraints]
        self.sign = torch.tensor(signs, dtype=torch.float64, device=self.device)
        self.limit = (torch.cat(limits) if limits else torch.zeros(0, dtype=torch.float64)).to(self.device) * self.sign
        self.key = torch.arange(self.users, device=self.device) if problem.key is None else problem.key
        self._objective: int | None = -1

    def feasibility(self) -> Rows:
        """The same limits with nothing to gain."""
        return self._with(None, self.limit)

    def minimising(self, limit: int, most: float) -> Rows:
        """The least usage of one limit under the others: its negative is the value, and it may reach ``most``."""
        return self._with(limit, self.limit.index_fill(0, torch.tensor([limit], device=self.device), most))

    def _with(self, objective: int | None, limit: Tensor) -> Rows:
        other = copy(self)
        other._objective, other.limit = objective, limit
        return other

    def block(self, users: Tensor | slice) -> Block:
        """These users under the limits of all; the usage is 0 where the user does not count."""
        p = self._problem
        value, cost = _arms_first(p.value[users]), _arms_first(p.cost[users])
        rows = [self._row(r, users, value, cost) for r in range(len(p.constraints))]
        allowed = None if self.allowed is None else self.allowed[users].T
        shape = (0, *value.shape)
        if self._objective is None:
            value = torch.zeros_like(value)
        elif self._objective >= 0:
            usage, index = rows[self.constraint[self._objective]]
            value = -usage * (index == self._objective)
        return Block(
            value if allowed is None else value.masked_fill(~allowed, -math.inf),
            torch.stack([usage for usage, _ in rows]) if rows else value.new_zeros(shape),
            torch.stack([index for _, index in rows]) if rows else self.key.new_zeros((0, value.shape[1])),
            self.limit,
            self.sizes,
        )

    def chunks(self) -> Iterator[tuple[slice, Block]]:
        """All users, some at a time."""
        entries = _CPU_ENTRIES if self.device.type == "cpu" else _DEVICE_ENTRIES
        size = max(1024, entries // (self.arms * (len(self.sizes) + 1)))
        for start in range(0, self.users, size):
            piece = slice(start, min(start + size, self.users))
            yield piece, self.block(piece)

    def _row(self, row: int, users: Tensor | slice, value: Tensor, cost: Tensor) -> tuple[Tensor, Tensor]:
        c, first = self._problem.constraints[row], sum(self.sizes[:row])
        usage = _usage(c, users, value, cost)
        index = torch.full((value.shape[1],), first, dtype=torch.int64, device=self.device)
        if c.users is not None:
            group = c.users[users]
            inside = group >= 0 if c.grouped else group
            usage = usage * inside
            if c.grouped:
                index = first + group.clamp(min=0)
        return usage, index


def _usage(c: Constraint, users: Tensor | slice, value: Tensor, cost: Tensor) -> Tensor:
    """``[K, n]``, signs turned; a fresh tensor."""
    match c.usage:
        case None:
            usage = cost.clone()
        case ReturnOnCost(floor):
            usage = (value - value[0]) - floor * (cost - cost[0])
        case Tensor():
            usage = (
                _arms_first(c.usage[users])
                if c.usage.dim() == 2
                else c.usage.double()[:, None].repeat(1, value.shape[1])
            )
        case number:
            usage = torch.full_like(value, number)
    if c.treatments is not None:
        out = torch.ones(len(value), dtype=torch.bool, device=value.device)
        out[list(c.treatments)] = False
        usage[out] = 0.0
    return usage.neg_() if c.at_least else usage


def _arms_first(x: Tensor) -> Tensor:
    return torch.empty(x.shape[1], x.shape[0], dtype=torch.float64, device=x.device).copy_(x.detach().T)
