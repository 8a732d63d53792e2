"""Multipliers of several constraints over all users: a sample, few full passes, and the users who are still open."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.full_pass import FullPass, full_pass, leads
from lightning_budget.allocation.constrained.newton import follow_path
from lightning_budget.allocation.constrained.rows import Block, Rows
from lightning_budget.allocation.constrained.sample import draw
from lightning_budget.allocation.constrained.scale import Scale, untied
from lightning_budget.allocation.constrained.smooth import smooth_dual
from lightning_budget.allocation.constrained.vertex import Vertex

SAMPLE_USERS = 1 << 14
"""Users drawn for a first guess; problems up to twice as large are solved whole."""

USERS_PER_GROUP = 256
OPEN_ENTRIES = 1 << 23
"""Usages held for the users who are still open."""

ENOUGH_OPEN = 1 << 13
"""Users whom the repair can move."""

WARM, COLD = 1e-2, 1e-9
"""Temperatures, as shares of a typical user's range of values, where the sample and the open users are solved."""

_DEVIATIONS = 4.0
_NARROWER, _WIDER = 0.25, 2.0
_DRAWS = 24

_FEW_LIMITS = 64
"""Going from vertex to vertex takes some steps for each limit; the path takes no more of them for many."""

_STEPS = 1000


@dataclass(frozen=True)
class DualSolution:
    """The least dual bound found.

    Attributes:
        multiplier: ``[P]`` float64, at least 0.
        last: the pass at these multipliers.
        scale: the units in which the open users were solved.
        error: ``[P]`` likely error of the multipliers of a sample, the unit of a user's lead.
        passes: looks at every user.
        visits: users looked at by Newton steps on samples and open users.
        at_upper: whether a multiplier ran into the price at which a limit may be missed.
    """

    multiplier: Tensor
    last: FullPass
    scale: Scale
    error: Tensor
    passes: int
    visits: int
    at_upper: bool


@torch.no_grad()
def solve_dual(rows: Rows, upper: float = 1e4, most_passes: int = 5, tolerance: float = 1e-7) -> DualSolution:
    r"""Minimise the dual bound over multipliers of all limits at once.

    .. math:: D(\lambda) = \lambda^\top b + \sum_i \max_j \big(v_{ij} - \sum_m \lambda_m a_{mij}\big)

    A sample gives multipliers and their standard errors; where a few users make up much of the total it is drawn by
    their size, which takes a look at everyone. A pass over everyone settles those whose choice no likely
    error changes; the rest is solved to the end with the others as constants. That model lies below the dual
    everywhere and touches it where nobody settled would choose otherwise, so the next pass proves the optimum or shows
    how much is missing, and settles users around the better point. A point that is worse joins the model: whoever
    chose otherwise there is open from then on.

    Args:
        rows: the problem.
        upper: largest multiplier, in units of a typical user's range of value over that of usage.
        most_passes: over everyone.
        tolerance: relative distance to the least dual at which to stop.
    """
    users, groups = rows.users, max(rows.sizes, default=1)
    drawn = max(SAMPLE_USERS, USERS_PER_GROUP * groups)
    whole = users <= 2 * drawn
    sample = draw(rows, users if whole else drawn)
    block = sample.block(rows)
    scale = Scale.of(block, rows.constraint)
    block = untied(scale.shrink(block), rows.key[sample.users])
    path = follow_path(block, torch.ones_like(block.limit), 1.0, COLD, upper)
    visits, price = path.visits, path.multiplier
    error = _standard_error(block, path.multiplier, torch.ones_like(sample.chance) if whole else 1 - sample.chance)
    most_open = max(ENOUGH_OPEN, OPEN_ENTRIES // (rows.arms * (len(rows.sizes) + 1)))
    reach = _reach(block, price, error, users, most_open, sample.chance)
    if whole:
        reach = math.inf if users <= ENOUGH_OPEN else reach
    best: _Point | None = None
    model: FullPass | None = None
    reached, passes = -math.inf, sample.passes
    width = 3 * reach * error if reach < math.inf else torch.full_like(error, upper)
    width = torch.maximum(width, 0.5 + 0.5 * price)
    while True:
        last = full_pass(rows, scale.multiplier(price), scale.multiplier(error), reach, scale.value)
        passes += 1
        worse = best is not None and last.bound >= best.last.bound
        if best is None or not worse:
            best = _Point(price, last)
        close = best.last.bound - reached <= tolerance * max(abs(best.last.bound), scale.value)
        if whole or close or passes >= most_passes or not len(last.open):
            break
        model = _joined(rows, model, best.last, last, most_open) if worse and model is not None else last
        width = width * (_NARROWER if worse else _WIDER)
        low, high = (best.price - width).clamp(min=0), (best.price + width).clamp(max=upper)
        block = rows.block(model.open)
        block = untied(scale.shrink(replace(block, limit=block.limit - model.settled)), rows.key[model.open])
        shifted = replace(block, value=block.scores(low))
        if len(low) <= _FEW_LIMITS:
            vertex = Vertex(shifted.cpu(), (best.price - low).cpu(), (high - low).cpu())
            seen, price = vertex.minimise(_STEPS) * len(model.open), vertex.price.to(low.device) + low
        else:
            path = follow_path(shifted, best.price - low, WARM, COLD, high - low)
            seen, price = path.visits, path.multiplier + low
        visits += seen
        if bool(((price < high - 0.01 * width) & ((price > low + 0.01 * width) | (low == 0))).all()):
            reached = max(reached, model.least(rows, scale.multiplier(price)))
        reach = _reach(block, price, error, len(model.open), min(most_open, 4 * ENOUGH_OPEN))
    multiplier, error = scale.multiplier(best.price), scale.multiplier(error)
    at_upper = bool((best.price > 0.1 * upper).any())
    return DualSolution(multiplier, best.last, scale, error, passes, visits, at_upper)


class _Point(NamedTuple):
    price: Tensor
    last: FullPass


def _joined(rows: Rows, model: FullPass, best: FullPass, last: FullPass, most: int) -> FullPass:
    """The model that touches the dual at both points, or the one there is if too many users would be open."""
    more = (best.treatment != last.treatment).index_fill(0, model.open, True)
    return last.opened(rows, more) if int(more.sum()) + len(last.open) <= most else model


def _reach(block: Block, price: Tensor, error: Tensor, users: int, most: int, chance: Tensor | None = None) -> float:
    """Standard errors that leave enough users open to hold the truth and to repair with, and not too many."""
    lead = leads(block, block.scores(price), error)
    some = torch.isfinite(lead)
    if not bool(some.any()):
        return float(lead[0])
    lead, order = lead[some].sort()
    # Each user of a sample stands for one over its chance.
    weight = torch.ones_like(lead) if chance is None else 1 / chance[some][order]
    counted = weight.cumsum(0) / weight.sum()
    likely = float((weight * (lead < _DEVIATIONS)).sum() / weight.sum())
    share = min(max(likely, ENOUGH_OPEN / users), most / users, 1.0)
    at = min(int((counted <= share).sum()), len(lead) - 1)
    return float(lead[at])


def _standard_error(block: Block, price: Tensor, missing: Tensor) -> Tensor:
    """``[P]``: spread of the multipliers over samples: the usage is redrawn with random weights and solved for.

    Args:
        missing: ``[n]``, one minus the chance with which each user was drawn.
    """
    if not len(price):
        return price
    dual = smooth_dual(block, price, WARM)
    given = block.given(block.scores(price).argmax(dim=0))
    given = (given - given.mean(dim=1, keepdim=True)) * missing.sqrt()
    generator = torch.Generator().manual_seed(0)
    ridge = WARM / price.square()
    total = torch.zeros_like(price)
    for _ in range(_DRAWS):
        weight = torch.randn(given.shape[1], dtype=torch.float64, generator=generator).to(price.device)
        total += dual.newton(block.used(given * weight), ridge).square()
    # Never nothing: a limit that did not bind in the sample may bind for all.
    return (total / _DRAWS).sqrt().clamp(min=1e-6)
