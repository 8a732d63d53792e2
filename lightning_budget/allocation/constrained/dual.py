"""Multipliers of several constraints over all users: a sample, few full passes, and the users who are still open."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.newton import follow_path
from lightning_budget.allocation.constrained.rows import Block, Rows
from lightning_budget.allocation.constrained.smooth import smooth_dual
from lightning_budget.allocation.constrained.sums import GroupSums
from lightning_budget.allocation.constrained.ties import by_hash, hashed_unit, lowest_hashes
from lightning_budget.allocation.summation import exact_parts

SAMPLE_USERS = 1 << 14
"""Users drawn for a first guess; problems up to twice as large are solved whole."""

USERS_PER_GROUP = 64
OPEN_ENTRIES = 1 << 23
"""Usages held for the users who are still open."""

ENOUGH_OPEN = 1 << 13
"""Users whom the repair can move."""

WARM, COLD = 1e-2, 1e-9
"""Temperatures, as shares of a typical user's range of values, where the sample and the open users are solved."""

TIE = 1e-7
"""Random part of a value, as a share of that range: equal users are told apart, so that few stay undecided."""

_DEVIATIONS = 4.0
_DRAWS = 24


@dataclass(frozen=True)
class FullPass:
    """What one look at every user at given multipliers tells.

    Attributes:
        bound: the dual there, above the value of every allocation.
        treatment: ``[N]`` int64, each user's best score.
        open: users whose best treatment depends on small changes of the multipliers, ordered by the hash of their key.
        settled: ``[P]`` usage of all others, each sum rounded once.
        settled_value: value of all others.
    """

    bound: float
    treatment: Tensor
    open: Tensor
    settled: list[float]
    settled_value: float


@dataclass(frozen=True)
class DualSolution:
    """The least dual bound found.

    Attributes:
        multiplier: ``[P]`` float64, at least 0.
        last: the pass at these multipliers.
        scale: the units in which the open users were solved.
        passes: looks at every user.
        visits: users looked at by Newton steps on samples and open users.
        at_upper: whether a multiplier ran into the price at which a limit may be missed.
    """

    multiplier: Tensor
    last: FullPass
    scale: Scale
    passes: int
    visits: int
    at_upper: bool


@dataclass(frozen=True)
class Scale:
    """Units in which a typical user's range of values and usages is about 1; powers of two, so that nothing rounds.

    Attributes:
        value: value units.
        usage: ``[R]``, units of each constraint.
        limit: ``[P]``, the same for each limit.
    """

    value: float
    usage: Tensor
    limit: Tensor

    @classmethod
    def of(cls, block: Block, constraint: list[int]) -> Scale:
        """From the ranges over the treatments of some users."""
        masked = torch.isinf(block.value)
        ranges = torch.cat([block.value[None], block.usage])
        high = ranges.masked_fill(masked, -math.inf).amax(dim=1)
        span = high - ranges.masked_fill(masked, math.inf).amin(dim=1)
        some = (span > 0).sum(dim=1).clamp(min=1)
        mean = span.sum(dim=1) / some
        unit = torch.where(mean > 0, mean.log2().round().exp2(), 1.0)
        return cls(float(unit[0]), unit[1:], unit[1:][constraint])

    def shrink(self, block: Block) -> Block:
        """The block in these units."""
        return replace(
            block,
            value=block.value / self.value,
            usage=block.usage / self.usage[:, None, None],
            limit=block.limit / self.limit,
        )

    def price(self, multiplier: Tensor) -> Tensor:
        """Multipliers in these units."""
        return multiplier * self.limit / self.value

    def multiplier(self, price: Tensor) -> Tensor:
        """Back from these units."""
        return price / self.limit * self.value


def untied(block: Block, key: Tensor) -> Block:
    """The block with values that differ by a little that belongs to the user's key and the treatment."""
    noise = torch.stack([hashed_unit(key, arm) for arm in range(len(block.value))])
    return replace(block, value=block.value + TIE * noise)


@torch.no_grad()
def solve_dual(rows: Rows, upper: float = 1e4, most_passes: int = 5, tolerance: float = 1e-7) -> DualSolution:
    r"""Minimise the dual bound over multipliers of all limits at once.

    .. math:: D(\lambda) = \lambda^\top b + \sum_i \max_j \big(v_{ij} - \sum_m \lambda_m a_{mij}\big)

    A sample gives multipliers and their standard errors. A pass over everyone settles those whose choice no likely
    error changes; the rest is solved to the end with the others as constants. That model lies below the dual
    everywhere and touches it where nobody settled would choose otherwise, so the next pass proves the optimum or shows
    how much is missing, and settles users around the better point.

    Args:
        rows: the problem.
        upper: largest multiplier, in units of a typical user's range of value over that of usage.
        most_passes: over everyone.
        tolerance: relative distance to the least dual at which to stop.
    """
    users, groups = rows.users, max(rows.sizes, default=1)
    drawn = max(SAMPLE_USERS, USERS_PER_GROUP * groups)
    whole = users <= 2 * drawn
    sample = by_hash(rows.key) if whole else lowest_hashes(rows.key, drawn)
    block = rows.block(sample)
    scale = Scale.of(block, rows.constraint)
    block = untied(scale.shrink(replace(block, limit=block.limit * (len(sample) / users))), rows.key[sample])
    path = follow_path(block, torch.ones_like(block.limit), 1.0, COLD if whole else WARM, upper)
    visits, price = path.visits, path.multiplier
    error = _standard_error(block, path.multiplier)
    most_open = max(ENOUGH_OPEN, OPEN_ENTRIES // (rows.arms * (len(rows.sizes) + 1)))
    reach = _reach(block, price, error, users, most_open)
    if whole:
        reach = math.inf if users <= ENOUGH_OPEN else reach
    best: tuple[float, Tensor, FullPass] | None = None
    model: FullPass | None = None
    reached, passes = -math.inf, 0
    while True:
        multiplier = scale.multiplier(price)
        last = full_pass(rows, multiplier, scale.multiplier(error), reach)
        passes += 1
        if model is not None:
            reached = max(reached, _model(rows, model, multiplier))
        if best is None or last.bound < best[0]:
            best = (last.bound, multiplier, last)
        close = best[0] - reached <= tolerance * max(abs(best[0]), scale.value)
        if whole or close or passes >= most_passes or not len(last.open):
            break
        model = last
        block = rows.block(model.open)
        rest = block.limit - torch.tensor(model.settled, dtype=torch.float64, device=rows.device)
        block = untied(scale.shrink(replace(block, limit=rest)), rows.key[model.open])
        path = follow_path(block, price, WARM, COLD, upper)
        visits, price = visits + path.visits, path.multiplier
        reach = _reach(block, price, error, len(model.open), min(most_open, 4 * ENOUGH_OPEN))
    at_upper = bool((scale.price(best[1]) > 0.1 * upper).any())
    return DualSolution(best[1], best[2], scale, passes, visits, at_upper)


def full_pass(rows: Rows, multiplier: Tensor, error: Tensor, reach: float) -> FullPass:
    """Score every user; those whose lead is below ``reach`` standard errors ``[P]`` of the multipliers stay open."""
    treatment = torch.zeros(rows.users, dtype=torch.int64, device=rows.device)
    bound, value = [float(x) for x in (multiplier * rows.limit).tolist()], []
    sums, open_users = GroupSums(len(rows.limit)), []
    for piece, block in rows.chunks():
        score = block.scores(multiplier)
        best, arm = score.max(dim=0)
        treatment[piece] = arm
        bound += exact_parts(best)
        is_open = _lead(block, score, error) < reach if reach < math.inf else torch.ones_like(arm, dtype=torch.bool)
        open_users.append(is_open.nonzero()[:, 0] + piece.start)
        value += exact_parts(block.value.gather(0, arm[None])[0].masked_fill(is_open, 0.0))
        for used, index in zip(block.given(arm).masked_fill(is_open, 0.0), block.index, strict=True):
            sums.add(used, index)
    found = torch.cat(open_users)
    found = found[by_hash(rows.key[found])]
    return FullPass(math.fsum(bound), treatment, found, sums.totals(), math.fsum(value))


def _model(rows: Rows, model: FullPass, multiplier: Tensor) -> float:
    """The dual with the choices of the settled users held: below it everywhere."""
    parts = [model.settled_value]
    for users in model.open.split(1 << 14):
        parts += exact_parts(rows.block(users).scores(multiplier).amax(dim=0))
    left = rows.limit - torch.tensor(model.settled, dtype=torch.float64, device=rows.device)
    return math.fsum(parts + (multiplier * left).tolist())


def _lead(block: Block, score: Tensor, error: Tensor) -> Tensor:
    """Smallest lead ``[n]`` over another treatment, in standard errors of the difference of their scores."""
    best, arm = score.max(dim=0)
    square = torch.zeros_like(score)
    for usage, given, size in zip(block.usage, block.given(arm), error[block.index], strict=True):
        square.addcmul_((usage - given) * size, (usage - given) * size)
    lead = (best - score) / square.sqrt()
    return torch.where(square > 0, lead, math.inf).amin(dim=0)


def _reach(block: Block, price: Tensor, error: Tensor, users: int, most: int) -> float:
    """Standard errors that leave enough users open to hold the truth and to repair with, and not too many."""
    lead = _lead(block, block.scores(price), error).sort().values
    lead = lead[: max(1, int(torch.isfinite(lead).sum()))]
    likely = float((lead < _DEVIATIONS).double().mean())
    share = min(max(likely, ENOUGH_OPEN / users), most / users, 1.0)
    at = min(int(share * len(lead)), len(lead) - 1)
    return float(lead[at])


def _standard_error(block: Block, price: Tensor) -> Tensor:
    """``[P]``: spread of the multipliers over samples: the usage is redrawn with random weights and solved for."""
    if not len(price):
        return price
    dual = smooth_dual(block, price, WARM)
    given = block.given(block.scores(price).argmax(dim=0))
    generator = torch.Generator().manual_seed(0)
    ridge = WARM / price.square()
    total = torch.zeros_like(price)
    for _ in range(_DRAWS):
        weight = torch.randn(given.shape[1], dtype=torch.float64, generator=generator).to(price.device)
        total += dual.newton(block.used((given - given.mean(dim=1, keepdim=True)) * weight), ridge).square()
    # Never nothing: a limit that did not bind in the sample may bind for all.
    return (total / _DRAWS).sqrt().clamp(min=1e-6)

