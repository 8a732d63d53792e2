"""The search among open users that are spread over files and processes: few of them ever meet in one place."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.fill import PATIENCE
from lightning_budget.allocation.finish import Found, Miss, OpenUsers
from lightning_budget.allocation.frontier import frontier_steps
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.search import Bracket, search
from lightning_budget.allocation.settled import arm_dtype, settle
from lightning_budget.allocation.shared_decision import Decision
from lightning_budget.allocation.shared_fill import BINS, fill_apart
from lightning_budget.allocation.shared_users import Block, OpenShare, Team, picked_from, totals
from lightning_budget.allocation.summation import exact_parts

MOST_GATHERED = 1 << 17
"""Users, or steps, that every process may hold at once for the exact end."""

MOST_KEPT = 1 << 24
"""Predictions of open users that a process keeps in memory; those of more are read again in every pass."""

_MARGINS = (0, 16, 1 << 8, BINS)
"""Bins taken on each side of the critical one, in turn, as long as a narrower bracket misses."""


@torch.no_grad()
def decide(share: OpenShare, total: float, team: Team, most: int = MOST_GATHERED) -> Decision | Miss:
    """The critical multiplier of a total budget and the fill, over the users of all processes.

    While too many users are open, one histogram of the prices of their steps by slope, summed over processes, says
    in which of its bins the spend passes the budget; whoever is settled within that bin drops out. The rest is
    brought together in every process, which all come to the same end. Where more users tie in one slope, the multiplier
    is found first, and the fill then goes over the ties in their order, by the hash of the key. Histograms are rounded
    and only guess: the end proves the bracket, and a miss takes more bins.

    Args:
        share: this process's users.
        total: currency.
        team: the processes.
        most: users to bring together at most.

    Returns:
        The decision, or on which side of ``share.bracket`` it lies.
    """
    if _few(share, team, most):
        return _together(share, total, team)
    found: Decision | Miss = Miss(above=True)
    for margin in _MARGINS:
        near = narrowed(share, total, team, most, margin, 4 * PATIENCE)
        found = _together(near, total, team) if _few(near, team, most) else _apart(near, total, team, most)
        if isinstance(found, Decision):
            break
    return found


def narrowed(share: OpenShare, total: float, team: Team, most: int, margin: int = 0, ahead: int = 0) -> OpenShare:
    """The share within a bracket that leaves at most so many users open, if a bracket can do that.

    Args:
        margin: bins to take on each side of the critical one.
        ahead: steps to keep below it, for the fill.
    """
    while True:
        shift, price, steps, base = _histogram(share, team)
        bracket = _critical_bins(share.bracket, shift, price, steps, base, total, margin, ahead)
        if bracket == share.bracket:
            return share
        share = _within(share, bracket)
        if shift == 0 or _few(share, team, most):
            return share


def spend_at(share: OpenShare, multiplier: float, team: Team) -> float:
    """Spend of all users of all processes at a multiplier inside the bracket."""
    return math.fsum(totals(share, lambda b: arms_at(b.value, b.cost, multiplier), team)[0])


def _few(share: OpenShare, team: Team, most: int) -> bool:
    return sum(team.gather(share.users)) <= most


def _histogram(share: OpenShare, team: Team) -> tuple[int, Tensor, Tensor, float]:
    """Width of a bin as a power of two, price and number of steps ``[BINS]``, and the spend at the upper end.

    Bins are equally wide in the bits of the slope, which for positive floats grow with it: a wide bracket is cut by
    powers, a narrow one evenly, and half a dozen cuts lead from all floats to a single one.
    """
    low, high = (_bits(x) for x in share.bracket)
    shift = max((high - low - 1).bit_length() - BINS.bit_length() + 1, 0)
    sums = torch.zeros(2 * BINS + 1, dtype=torch.float64)
    base = list(share.spend)
    for block in share.blocks():
        at_high = arms_at(block.value, block.cost, share.bracket[1])
        base += exact_parts(block.cost.gather(0, at_high[None]))
        _, user, arm, previous, slope = frontier_steps(block.value, block.cost, *share.bracket)
        price = block.cost[arm, user].double() - block.cost[previous, user].double()
        index = (slope.view(torch.int64) - low - 1) >> shift
        sums[:BINS] += torch.bincount(index, weights=price, minlength=BINS).cpu()
        sums[BINS:-1] += torch.bincount(index, minlength=BINS).cpu()
    sums[-1] = math.fsum(base)
    sums = team.total(sums)
    return shift, sums[:BINS], sums[BINS:-1], float(sums[-1])


def _critical_bins(
    bracket: Bracket, shift: int, price: Tensor, steps: Tensor, base: float, total: float, margin: int, ahead: int
) -> Bracket:
    downward = base + price.flip(0).cumsum(0)
    first, last = (_bits(x) for x in bracket)
    # Even the upper end may overspend, and the bins reach beyond it.
    critical = min(BINS - 1 - min(int((downward <= total).sum()), BINS - 1), (last - first - 1) >> shift)
    low, high = max(critical - margin, 0), min(critical + 1 + margin, BINS)
    if ahead:
        below = steps[:low].flip(0).cumsum(0)
        low -= min(int((below < ahead).sum()) + 1, low)
    return (
        bracket[0] if low == 0 else _float(first + (low << shift)),
        bracket[1] if first + (high << shift) >= last else _float(first + (high << shift)),
    )


def _within(share: OpenShare, bracket: Bracket) -> OpenShare:
    """The share within a narrower bracket, whose users are kept if they are few and else picked out in every pass."""
    kept: list[Block] | None = []
    marks: list[Tensor] = []
    numbers = 0
    spend, worth = list(share.spend), list(share.worth)
    for block in share.blocks():
        left, part_spend, part_worth = _open(block, bracket)
        spend += part_spend
        worth += part_worth
        marks.append(left)
        numbers += 2 * len(block.value) * int(left.sum())
        if kept is not None and numbers <= MOST_KEPT:
            kept.append(block.select(left))
        else:
            kept = None
    users = sum(int(m.sum()) for m in marks)
    blocks = picked_from(share.blocks, marks) if kept is None else lambda: kept
    return OpenShare(bracket, blocks, users, spend, worth)


def _open(block: Block, bracket: Bracket) -> tuple[Tensor, list[float], list[float]]:
    """Who has a step in the bracket, ``[n]`` bool, and parts of what all others cost, and of what they are worth."""
    arm = torch.empty(len(block.key), dtype=arm_dtype(len(block.value)))
    (part,) = settle(block.value, block.cost, [bracket], arm)
    # Scores are compared with a margin, within which there may be many users but no step.
    low, high = (arms_at(part.value, part.cost, end) for end in bracket)
    steps = low != high
    steps[frontier_steps(part.value, part.cost, *bracket)[1]] = True
    settled, chosen = ~steps, high[~steps][None]
    found = torch.zeros(len(block.key), dtype=torch.bool)
    found[part.rows[steps]] = True
    return (
        found,
        part.spend + exact_parts(part.cost[:, settled].gather(0, chosen)),
        part.worth + exact_parts(part.value[:, settled].gather(0, chosen)),
    )


def _apart(share: OpenShare, total: float, team: Team, most: int) -> Decision | Miss:
    multiplier = _multiplier(share, total, team, most)
    return multiplier if isinstance(multiplier, Miss) else fill_apart(share, multiplier, total, team, most)


def _multiplier(share: OpenShare, total: float, team: Team, most: int) -> float | Miss:
    """The smallest breakpoint at which the spend fits, alone: few users are near to it, or all of these tie."""
    left, near = share, narrowed(share, total, team, most)
    while True:
        low, high = near.bracket
        if _few(near, team, most):
            end = search(_gathered(near, team)[0], total, leftover=False)
            found = end.multiplier if isinstance(end, Found) else end
        elif spend_at(near, high, team) > total:
            found = Miss(above=True)
        elif spend_at(near, low, team) <= total:
            found = 0.0 if low == 0 else Miss(above=False, fits=low)
        else:
            found = high
        if not isinstance(found, Miss):
            return _breakpoint(share, found, total, team) if found > 0 else found
        # Rounded sums chose a bin beside the right one.
        beside = (high, left.bracket[1]) if found.above else (left.bracket[0], low)
        if beside[0] >= beside[1]:
            return found
        left = _within(left, beside)
        near = _halved(left, total, team, most)


def _breakpoint(share: OpenShare, fits: float, total: float, team: Team) -> float:
    """The smallest slope of a step from a multiplier on at which the spend fits.

    Slopes between arms that lie on one line differ by rounding: the policy then changes where no step of a frontier is.
    """
    least = share.bracket[1]
    for block in share.blocks():
        slope = frontier_steps(block.value, block.cost, math.nextafter(fits, 0.0), least)[-1]
        least = min([least, *slope.amin(0, keepdim=True).tolist()]) if len(slope) else least
    least = min(team.gather(least))
    return least if spend_at(share, least, team) <= total else fits


def _halved(share: OpenShare, total: float, team: Team, most: int) -> OpenShare:
    """As :func:`narrowed`, half by half and by exact sums, which cannot mislead."""
    while not _few(share, team, most):
        low, high = (_bits(x) for x in share.bracket)
        if high - low < 2:
            break
        middle = _float((low + high) // 2)
        fits = spend_at(share, middle, team) <= total
        share = _within(share, (share.bracket[0], middle) if fits else (middle, share.bracket[1]))
    return share


def _gathered(share: OpenShare, team: Team) -> tuple[OpenUsers, Tensor]:
    """The open users of all processes together, and their places, in whose order they are."""
    everyone = team.gather((list(share.blocks()), share.spend, share.worth))
    blocks = [block for mine, _, _ in everyone for block in mine]
    place = torch.cat([b.place for b in blocks])
    order = place.argsort()
    users = OpenUsers(
        value=torch.cat([b.value for b in blocks], 1)[:, order],
        cost=torch.cat([b.cost for b in blocks], 1)[:, order],
        key=torch.cat([b.key for b in blocks])[order],
        low=share.bracket[0],
        high=share.bracket[1],
        spend=[x for _, spend, _ in everyone for x in spend],
        worth=[x for _, _, worth in everyone for x in worth],
    )
    return users, place[order]


def _together(share: OpenShare, total: float, team: Team) -> Decision | Miss:
    """Bring the open users of all processes together and solve them, in every process alike."""
    users, place = _gathered(share, team)
    found = search(users, total, leftover=True)
    if isinstance(found, Miss):
        return found
    filled = (found.arm.long() != arms_at(users.value, users.cost, found.multiplier)).nonzero()[:, 0]
    return Decision(
        found.multiplier,
        place[filled],
        found.arm[filled].long(),
        found.policy_spend,
        found.policy_worth,
        found.spend,
        found.worth,
    )


def _bits(x: float) -> int:
    return int(torch.tensor(x, dtype=torch.float64).view(torch.int64))


def _float(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int64).view(torch.float64))
