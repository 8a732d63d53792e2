"""The fill where more users tie than meet in one place: a prefix told by sums, then steps in their order, few at once.

After :func:`lightning_budget.allocation.fill.spend_leftover`, step by step: one is taken if it still fits, a user whose
step does not fit takes no later one, and so many are passed over at most. Whoever is passed over is listed; for all
others the end of the fill tells which steps they took.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_budget.allocation.fill import PATIENCE
from lightning_budget.allocation.finish import Miss
from lightning_budget.allocation.order import by_slope
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.shared_decision import Ahead, Decision, Position, arms_until, steps_ahead
from lightning_budget.allocation.shared_users import Block, OpenShare, Team, totals

BINS = 1 << 12

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1

_SURE = 1 - 1e-9
"""Of the slack: rounded sums up to here are below it."""


def fill_apart(share: OpenShare, multiplier: float, total: float, team: Team, most: int) -> Decision | Miss:
    """The fill at a known critical multiplier, without bringing all users of its steps together.

    Args:
        share: this process's users, within a bracket that holds the multiplier and the steps that the fill looks at.
        total: currency.
        most: steps to bring together at most.

    Returns:
        The decision, or that more steps below the bracket are needed.
    """
    nobody = torch.empty(0, dtype=torch.int64)
    policy = totals(share, lambda b: arms_at(b.value, b.cost, multiplier), team)
    if multiplier == 0:
        return Decision(multiplier, nobody, nobody, *policy, *policy)

    def slack_at(end: Position | None) -> float:
        spend, _ = totals(share, lambda b: arms_until(b, multiplier, end, nobody, nobody), team)
        return math.fsum([total, *(-x for x in spend)])

    slack = math.fsum([total, *(-x for x in policy[0])])
    walk = _Walk(1e-14 * slack)
    end = _sure_prefix(share, multiplier, slack, team, most)
    left = slack if end is None else slack_at(end)
    walk.slack, walk.start = (left, end) if left >= 0 else (slack, None)
    if not _walked(walk, share, multiplier, team, most):
        return Miss(above=False, fits=multiplier)
    for end, place, arm in walk.ends():
        found = totals(share, lambda b, e=end, p=place, a=arm: arms_until(b, multiplier, e, p, a), team)
        if math.fsum(found[0]) <= total:
            return Decision(multiplier, place, arm, *policy, *found, end=end)
    raise AssertionError("the policy at the multiplier overspends")


@dataclass(frozen=True)
class _Step:
    position: Position
    place: int
    previous: int
    arm: int
    price: float


@dataclass
class _Walk:
    """Who has taken what so far, step by step."""

    tolerance: float
    slack: float = 0.0
    start: Position | None = None
    passed: int = 0
    stopped: dict[int, int] = field(default_factory=dict)
    taken: list[_Step] = field(default_factory=list)

    def over(self, steps: Iterable[_Step]) -> bool:
        """Go on over some steps; whether the fill has stopped of itself."""
        for step in steps:
            if step.place not in self.stopped and step.price <= self.slack + self.tolerance:
                self.slack -= step.price
                self.taken.append(step)
                continue
            self.stopped.setdefault(step.place, step.previous)
            self.passed += 1
            if self.passed == PATIENCE:
                return True
        return False

    def ends(self) -> Iterator[tuple[Position | None, Tensor, Tensor]]:
        """The end, and the users it does not tell of with their arms; then, as sums are rounded, ever earlier ends."""
        arms = dict(self.stopped)
        for last in reversed(self.taken):
            arms[last.place] = last.arm
            place = torch.tensor(sorted(arms), dtype=torch.int64)
            yield last.position, place, torch.tensor([arms[p] for p in place.tolist()], dtype=torch.int64)
            arms[last.place] = last.previous
        nobody = torch.empty(0, dtype=torch.int64)
        yield self.start, nobody, nobody
        yield None, nobody, nobody


def _walked(walk: _Walk, share: OpenShare, multiplier: float, team: Team, most: int) -> bool:
    """Walk on until the fill stops; false if the steps of the bracket end before, and there may be more below."""
    at, size = walk.start, min(4 * PATIENCE, most)
    while True:
        steps = _next(share, multiplier, at, size, team)
        if walk.over(steps):
            return True
        if len(steps) < size:
            return share.bracket[0] == 0
        at, size = steps[-1].position, min(8 * size, most)
        # The last few are enough to give back what rounding took too many.
        del walk.taken[:-PATIENCE]


def _next(share: OpenShare, multiplier: float, at: Position | None, size: int, team: Team) -> list[_Step]:
    """The next so many steps of all processes after a position, in their order; few more to keep a user's together."""
    held: tuple[Ahead, Tensor] | None = None
    for block in share.blocks():
        _, ahead = steps_ahead(block, multiplier, share.bracket[0])
        if at is not None:
            ahead = ahead.select(~ahead.until(at))
        held = _first(held, (ahead, _price(block, ahead)), size)
    found: tuple[Ahead, Tensor] | None = None
    for mine in team.gather(held):
        found = found if mine is None else _first(found, mine, size)
    if found is None:
        return []
    ahead, price = found
    columns = (ahead.slope, ahead.key, ahead.place, ahead.previous, ahead.arm, price)
    rows = zip(*(x.tolist() for x in columns), strict=True)
    return [_Step((slope, key, place), place, previous, arm, p) for slope, key, place, previous, arm, p in rows]


def _first(held: tuple[Ahead, Tensor] | None, more: tuple[Ahead, Tensor], size: int) -> tuple[Ahead, Tensor]:
    ahead, price = more
    if held is not None:
        ahead = held[0].joined(ahead)
        price = torch.cat([held[1], price])
    by_place = ahead.place.argsort(stable=True)
    order = by_place[by_slope(ahead.slope[by_place], ahead.key[by_place])]
    if len(order) > size:
        last = ahead.select(order[size - 1 : size])
        end = float(last.slope), int(last.key), int(last.place)
        order = order[ahead.until(end)[order]]
    return ahead.select(order), price[order]


def _sure_prefix(share: OpenShare, multiplier: float, slack: float, team: Team, most: int) -> Position | None:
    """Up to where the steps tied at the multiplier surely fit, so near to their critical one that few are in between.

    One histogram of their prices by the leading bits of the mixed key, summed over processes, says in which of its bins
    they pass the slack; then that bin is cut, and where users share one key their places.
    """
    key, few, done = _critical(share, multiplier, slack, team, most)
    if not few:
        place, _, _ = _critical(share, multiplier, slack, team, most, key, done)
        if place > _LEAST:
            return multiplier, key, place - 1
    return (multiplier, key - 1, _MOST) if key > _LEAST else None


def _critical(
    share: OpenShare,
    multiplier: float,
    slack: float,
    team: Team,
    most: int,
    key: int | None = None,
    done: float = 0.0,
) -> tuple[int, bool, float]:
    """The first mixed key, or with ``key`` the first place of that, in the bin in which prices pass the slack.

    Returns:
        It, whether few enough steps are in its bin, and ``done`` with the prices before it.
    """
    first, bits, few = _LEAST, 64, False
    while bits and not few:
        cut = max(bits - BINS.bit_length() + 1, 0)
        price, steps = _by_bits(share, multiplier, key, (first, bits), cut, team)
        running = done + price.cumsum(0)
        critical = min(int((running <= slack * _SURE).sum()), (1 << (bits - cut)) - 1)
        done = float(running[critical - 1]) if critical else done
        first, bits, few = first + (critical << cut), cut, bool(steps[critical] <= most)
    return first, few, done


def _by_bits(
    share: OpenShare, multiplier: float, key: int | None, within: tuple[int, int], cut: int, team: Team
) -> tuple[Tensor, Tensor]:
    """Price and number of the steps tied at the multiplier ``[BINS]``, by mixed key, or with ``key`` by its places.

    Args:
        within: first of them, and the bits in which others differ; cut: the bits in which those of one bin do.
    """
    first, bits = within
    sums = torch.zeros(2, BINS, dtype=torch.float64)
    for block in share.blocks():
        _, ahead = steps_ahead(block, multiplier, math.nextafter(multiplier, 0.0))
        x = ahead.key if key is None else ahead.place
        inside = (x >= first) & (x <= first + (1 << bits) - 1)
        if key is not None:
            inside &= ahead.key == key
        ahead = ahead.select(inside)
        index = (x[inside] >> cut) - (first >> cut)
        sums[0] += torch.bincount(index, weights=_price(block, ahead), minlength=BINS)
        sums[1] += torch.bincount(index, minlength=BINS)
    price, steps = team.total(sums)
    return price, steps


def _price(block: Block, ahead: Ahead) -> Tensor:
    return block.cost[ahead.arm, ahead.user].double() - block.cost[ahead.previous, ahead.user].double()
