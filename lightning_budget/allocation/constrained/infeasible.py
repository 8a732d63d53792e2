"""Proof that no allocation, whole or fractional, meets all limits, and which of them it takes to say so."""

from __future__ import annotations

import math
from copy import copy
from typing import NoReturn

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.dual import solve_dual
from lightning_budget.allocation.constrained.rows import Rows
from lightning_budget.allocation.constrained.sums import GroupSums
from lightning_budget.allocation.summation import exact_parts
from lightning_budget.errors import InputError

_TRIED = 24
_NAMED = 4
_ROUNDED = 1e-14


def tighten(rows: Rows) -> None:
    r"""Refuse limits below the least their own users need, and forbid treatments that no such allocation can give.

    A treatment whose usage exceeds the user's least by more than the limit leaves over all users' least is in no
    allocation. Without it a limit that is just met has no infinite multiplier.

    Raises:
        InputError: if one limit alone is too low, :math:`\sum_i \min_j a_{ij} > b`, or single users cannot be served.
    """
    given = copy(rows)
    for turn in range(len(rows.sizes) + 1):
        least, widest = _least(rows)
        for p, total in enumerate(least):
            if total > float(rows.limit[p]):
                if not turn:
                    raise _alone(rows, p, total)
                # Others of the limits have forbidden what this one needs.
                refuse_infeasible(given)
                raise not_whole(rows, f"whole users need {_total(rows, p, total)} of {rows.names[p]!r}")
        needed = torch.tensor(least, dtype=torch.float64, device=rows.device)
        # Usages and their differences are rounded: what exceeds by no more than that may be given.
        room = rows.limit - needed + _ROUNDED * (rows.limit.abs() + needed.abs() + widest)
        if not bool((widest > room).any()):
            return
        allowed = torch.ones(rows.users, rows.arms, dtype=torch.bool, device=rows.device)
        for piece, block in rows.chunks():
            masked = torch.isinf(block.value)
            ok = ~masked
            for usage, left in zip(block.usage, room[block.index], strict=True):
                ok &= usage - usage.masked_fill(masked, math.inf).amin(dim=0) <= left
            allowed[piece] = ok.T
        if not bool(allowed.any(dim=1).all()):
            refuse_infeasible(given)
            user = int((~allowed.any(dim=1)).nonzero()[0])
            raise not_whole(rows, f"each treatment of user {user} exceeds one of them")
        rows.allowed = allowed


def _least(rows: Rows) -> tuple[list[float], Tensor]:
    """For each limit the least its users need, and the widest range of one user."""
    sums, widest = GroupSums(len(rows.limit)), torch.zeros_like(rows.limit)
    for _, block in rows.chunks():
        masked = torch.isinf(block.value)
        for usage, index in zip(block.usage, block.index, strict=True):
            low = usage.masked_fill(masked, math.inf).amin(dim=0)
            sums.add(low, index)
            widest.scatter_reduce_(0, index, usage.masked_fill(masked, -math.inf).amax(dim=0) - low, "amax")
    return sums.totals(), widest


def refuse_infeasible(rows: Rows) -> None:
    r"""Raise if non-negative multipliers prove that no allocation exists, and name the limits they need.

    .. math:: \sum_i \min_j \sum_m y_m a_{mij} > \sum_m y_m b_m, \qquad y \ge 0

    The multipliers are those of the dual without values between 0 and 1: they minimise the sum of what is missed.

    Raises:
        InputError: with the limits of the proof, and what the first of them needs at least while the others stay.

    Source:
        Farkas 1902, doi:10.1515/crll.1902.124.1.
    """
    bare = rows.feasibility()
    found = solve_dual(bare, upper=1.0)
    y = found.multiplier
    if _proof(bare, y) <= 0:
        return
    price = found.scale.price(y)
    small = torch.where(price > 1e-3 * price.max(), y, 0.0)
    y = small if _proof(bare, small) > 0 else y
    for p in price.argsort().tolist()[:_TRIED] if int((y > 0).sum()) > 1 else []:
        if float(y[p]) > 0 and _proof(bare, without := y.index_fill(0, torch.tensor([p], device=y.device), 0.0)) > 0:
            y = without
    _refuse(rows, y, _proof(bare, y))


def _proof(bare: Rows, y: Tensor) -> float:
    """By how much the multipliers prove the limits impossible; not above 0 where rounding could have done it."""
    parts, size = [-x for x in (y * bare.limit).tolist()], float((y * bare.limit).abs().sum())
    for _, block in bare.chunks():
        least = block.scores(y).amax(dim=0).neg_()
        parts += exact_parts(least)
        size += float((block.usage.abs().amax(dim=1) * y[block.index]).sum())
    return math.fsum(parts) - 1e-13 * size


def _refuse(rows: Rows, y: Tensor, margin: float) -> NoReturn:
    support = (y > 0).nonzero()[:, 0].tolist()
    if len(support) == 1:
        p = support[0]
        raise _alone(rows, p, float(rows.limit[p]) + margin / float(y[p]))
    # The limit that a change of it would mend most directly: the one that moves least in its own units.
    moves = {p: margin / float(y[p]) / max(abs(float(rows.limit[p])), 1e-300) for p in support}
    p = min(support, key=lambda q: (moves[q], q))
    needs = _least_given_others(rows, p, float(rows.limit[p]) + margin / float(y[p]))
    named = [f"{rows.names[q]!r} ({_limit(rows, q)})" for q in [p, *(q for q in support if q != p)]]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    raise InputError(
        f"constraints {', '.join(named[:_NAMED])}{more} cannot hold together",
        f"{rows.names[p]!r} {_needed(rows, p, needs, 6)} while the others stay as they are",
        f"{_mend(rows, p)}, or relax one of the others",
    )


def _least_given_others(rows: Rows, p: int, proven: float) -> float:
    """The least usage of one limit under the others, from below; ``proven`` where the others say nothing better."""
    most = [
        block.usage[rows.constraint[p]].masked_fill(torch.isinf(block.value), -math.inf).amax(dim=0)
        for _, block in rows.chunks()
    ]
    index = [block.index[rows.constraint[p]] for _, block in rows.chunks()]
    reachable = float(torch.cat(most)[torch.cat(index) == p].sum())
    bound = -solve_dual(rows.minimising(p, reachable)).last.bound
    return bound if proven < bound <= reachable else proven


def _alone(rows: Rows, p: int, total: float) -> InputError:
    return InputError(
        f"constraint {rows.names[p]!r}: {_limit(rows, p)}", f"{_needed(rows, p, total)}", f"{_mend(rows, p)}"
    )


def not_whole(rows: Rows, why: str) -> InputError:
    """No allocation of whole users was found where fractions of users may do."""
    names = ", ".join(repr(n) for n in rows.names[:_NAMED]) + (" and others" if len(rows.names) > _NAMED else "")
    return InputError(
        f"no allocation of whole users within {names} was found ({why}), nor a proof that there is none",
        "limits with room for single users",
        "loosen the tightest of them by the usage of one user",
    )


def _limit(rows: Rows, p: int) -> str:
    return f"limit {'at least' if rows.sign[p] < 0 else 'at most'} {float(rows.limit[p] * rows.sign[p]):.15g}"


def _total(rows: Rows, p: int, total: float) -> str:
    return f"{total * float(rows.sign[p]):.6g}"


def _needed(rows: Rows, p: int, total: float, digits: int = 15) -> str:
    if rows.sign[p] < 0:
        return f"not above {-total:.{digits}g}, the most its users can reach"
    return f"not below {total:.{digits}g}, the least its users need"


def _mend(rows: Rows, p: int) -> str:
    return f"{'lower' if rows.sign[p] < 0 else 'raise'} the limit of {rows.names[p]!r}"
