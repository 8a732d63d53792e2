"""Solve an allocation problem with several constraints and say how far from the optimum it can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.branch import branch
from lightning_budget.allocation.constrained.dual import DualSolution, solve_dual
from lightning_budget.allocation.constrained.fill import fill
from lightning_budget.allocation.constrained.full_pass import FullPass, all_leads, full_pass
from lightning_budget.allocation.constrained.infeasible import not_whole, refuse_infeasible, tighten
from lightning_budget.allocation.constrained.moves import ROUNDING
from lightning_budget.allocation.constrained.problem import ConstrainedProblem, Constraint
from lightning_budget.allocation.constrained.repair import repair
from lightning_budget.allocation.constrained.rows import Rows
from lightning_budget.allocation.constrained.scale import untied
from lightning_budget.allocation.constrained.search import search
from lightning_budget.allocation.constrained.smooth import hard_dual
from lightning_budget.allocation.constrained.sums import GroupSums

_ENOUGH = 3e-6
"""Relative gap at which the search for better whole users stops."""

_WIDE = 4e-4
"""Relative gap above which large users are settled by branch and bound."""

_POOR = 1e-3

_WIDEST = 1 << 25
"""Usages held at most while users are moved."""


@dataclass(frozen=True)
class ConstrainedAllocation:
    """One treatment per user within every limit, and the proof of its quality.

    Attributes:
        assignment: ``[N]`` int64.
        multipliers: by name of the constraint, what one more unit of its limit would earn, at least 0; a tensor
            ``[G]`` where it has groups, else a float. For an ``at least``, what one unit less would earn.
        value: total predicted value.
        dual_bound: no allocation within the limits is worth more.
        gap: ``dual_bound − value``, at least 0 up to rounding.
        usage: by name, the total, summed without rounding between users; like the multipliers.
        slack: by name, distance to the limit on its allowed side, at least 0.
        passes: looks at all users that the multipliers took; open users are solved apart.
        visits: users looked at by the steps on a sample and on the open users.
    """

    assignment: Tensor
    multipliers: dict[str, float | Tensor]
    value: float
    dual_bound: float
    gap: float
    usage: dict[str, float | Tensor]
    slack: dict[str, float | Tensor]
    passes: int
    visits: int

    def certificate(self) -> dict[str, float | int | dict[str, float]]:
        """Plain numbers for a report; of a constraint with groups the largest multiplier and the least slack."""
        return {
            "users": len(self.assignment),
            "value": self.value,
            "dual_bound": self.dual_bound,
            "gap": self.gap,
            "relative_gap": self.gap / abs(self.dual_bound) if self.dual_bound else 0.0,
            "multipliers": {name: float(_tensor(x).max()) for name, x in self.multipliers.items()},
            "slack": {name: float(_tensor(x).min()) for name, x in self.slack.items()},
        }


@torch.no_grad()
def allocate_constrained(problem: ConstrainedProblem) -> ConstrainedAllocation:
    """Give every user one treatment so that all constraints hold.

    The multipliers minimise the dual bound; the policy at them is repaired until every limit holds, and what is left
    over is spent on single users and pairs of users. Usages are recounted exactly before anything is returned.

    Args:
        problem: N users, K treatments, constraints and masks.

    Raises:
        InputError: if the constraints cannot hold together, which is proved and the constraints named; or if no
            allocation of whole users was found although there is no such proof.
    """
    rows, given = Rows(problem), Rows(problem)
    tighten(rows)
    solved = solve_dual(rows)
    if solved.at_upper:
        refuse_infeasible(given)
    found = _whole_users(rows, solved)
    if solved.at_upper and (found is None or solved.last.bound - found[1] > _POOR * abs(solved.last.bound)):
        # Limits that hold, but only just: nothing but a far higher price of missing them meets them.
        dearer = solve_dual(rows, upper=1e7)
        solved = min(solved, dearer, key=lambda s: s.last.bound)
        found = max(filter(None, (found, _whole_users(rows, dearer))), key=lambda f: f[1], default=None)
    if found is None:
        refuse_infeasible(given)
        raise not_whole(rows, "single users do not add up to the limits")
    treatment, value, usage = found
    slack = rows.limit - usage
    bound = solved.last.bound
    return ConstrainedAllocation(
        treatment,
        _by_name(problem.constraints, solved.multiplier),
        value,
        bound,
        bound - value,
        _by_name(problem.constraints, usage * rows.sign),
        _by_name(problem.constraints, slack),
        solved.passes,
        solved.visits,
    )


_Found = tuple[Tensor, float, Tensor]
"""Treatments, their value, and their usage ``[P]`` with turned signs."""


def _whole_users(rows: Rows, solved: DualSolution) -> _Found | None:
    """The policy with its open users moved until all limits hold exactly; ``None`` if that was not found."""
    found = _move(rows, solved, solved.last)
    if found is None and len(solved.last.open) < rows.users:
        found = _move(rows, solved, _widened(rows, solved))
    return found


def _widened(rows: Rows, solved: DualSolution) -> FullPass:
    """The same policy with as many users open as may be held at once, those with the smallest leads."""
    most = _WIDEST // (rows.arms * (len(rows.sizes) + 1))
    reach = math.inf
    if rows.users > most:
        lead = all_leads(rows, solved.multiplier, solved.error, solved.scale.value)
        reach = float(lead.kthvalue(most).values)
    return full_pass(rows, solved.multiplier, solved.error, reach, solved.scale.value)


def _move(rows: Rows, solved: DualSolution, policy: FullPass) -> _Found | None:
    """Open users moved as far as it takes; limits are drawn in where sums in another order round across."""
    users, settled = policy.open, policy.settled
    scale, treatment = solved.scale, policy.treatment
    price = scale.price(solved.multiplier)
    full = rows.block(users)
    inset = torch.zeros_like(settled)
    for _ in range(3):
        block = untied(scale.shrink(replace(full, limit=full.limit - settled - inset)), rows.key[users])
        state = repair(block, price, treatment[users])
        bound, unit = hard_dual(block, price), abs(solved.last.bound) / scale.value
        if state.fits:
            fill(state, price, bound - _ENOUGH * unit)
        search(state, price, bound - _ENOUGH * unit)
        if not state.fits or state.worth < bound - _WIDE * unit:
            branch(state, price, bound - _WIDE * unit)
            if state.fits:
                fill(state, price, bound - _ENOUGH * unit)
        if not state.fits:
            return None
        whole = treatment.index_copy(0, users, state.treatment)
        usage, value = _recount(rows, whole)
        over = usage - rows.limit
        if not bool((over > 0).any()):
            return whole, value, usage
        unit = scale.limit + rows.limit.abs()
        inset = torch.where(over > 0, inset + 4 * over + 4 * ROUNDING * unit, inset)
    return None


def _recount(rows: Rows, treatment: Tensor) -> tuple[Tensor, float]:
    """``[P]`` usage with turned signs, and the value, each rounded once."""
    sums = GroupSums(len(rows.limit) + 1)
    for piece, block in rows.chunks():
        arm = treatment[piece]
        value = block.value.gather(0, arm[None])[0]
        sums.add(value, torch.full_like(arm, len(rows.limit)))
        for used, index in zip(block.given(arm), block.index, strict=True):
            sums.add(used, index)
    *usage, value = sums.totals()
    return torch.tensor(usage, dtype=torch.float64, device=rows.device), value


def _tensor(x: float | Tensor) -> Tensor:
    """In float64, which torch does not make of a plain number."""
    return torch.as_tensor(x, dtype=torch.float64)


def _by_name(constraints: Sequence[Constraint], x: Tensor) -> dict[str, float | Tensor]:
    parts = x.split([c.groups for c in constraints]) if len(constraints) else ()
    return {c.name: part if c.grouped else float(part) for c, part in zip(constraints, parts, strict=True)}
