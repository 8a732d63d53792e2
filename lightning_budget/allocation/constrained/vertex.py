"""The least dual of a block, exactly, from vertex to vertex: which users the linear optimum splits, and how."""

from __future__ import annotations

import heapq
import math
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.rows import Block

AT_ZERO, AT_UPPER = -1, -2

_FIRST = 64
"""Users looked at first where a line ends."""

_SHARE = 1e-7
"""A share this far below 0 counts as none."""

_FLAT = 1e-10
"""Rates below it never make a treatment the best."""

_LOOK = 4
"""Steps between looks at the bound."""


@dataclass(frozen=True)
class Tie:
    """A facet on which a vertex lies: a user's other treatment that scores as well, or a multiplier at a bound.

    Attributes:
        user: position in the block; −1 for a multiplier at 0, −2 for one at its upper bound.
        at: the treatment, or the limit.
    """

    user: int
    at: int


class Vertex:
    r"""A point at which the dual of a block is minimised by an active-set method.

    .. math:: \min_{0 \le \lambda \le u} \lambda^\top b + \sum_i \max_j \big(v_{ij} - \sum_m \lambda_m a_{mij}\big)

    The dual is linear between facets. Where too few of them meet, the next point is the lowest along the slope that
    they leave; at a vertex the facet whose share is negative is left along the edge of all others, past every facet
    that does not turn the slope. That is the dual simplex method with long steps, one working row for each limit.

    Attributes:
        block: the users, on the CPU.
        price: ``[P]``.
        base: ``[n]`` int64, a best treatment of each.
        score: ``[K, n]``.
        upper: ``[P]``, bounds on the multipliers beside 0.
        ties: facets, at most P.
        share: how much of the user each tie's treatment gets in the linear optimum; of a multiplier, the slack.

    Source:
        Dantzig, Van Slyke 1967, doi:10.1016/S0022-0000(67)80015-2 (one working row for each limit);
        Maros 2003, doi:10.1016/S0377-2217(02)00571-2 (long steps).
    """

    def __init__(self, block: Block, price: Tensor, upper: Tensor | None = None) -> None:
        self.block, self.price = block, price.clone()
        self.upper = torch.full_like(price, math.inf) if upper is None else upper
        self.score = block.scores(price)
        self.base = self.score.argmax(dim=0)
        self.slack = block.limit - block.used(block.given(self.base))
        self.ties: list[Tie] = []
        self._normals: list[Tensor] = []
        self.share: list[float] = []
        self._flat = 1e-9 * (1 + block.limit.abs())

    @property
    def bound(self) -> float:
        """The dual here."""
        return float(self.score.gather(0, self.base[None]).sum() + self.price @ self.block.limit)

    def copy(self) -> Vertex:
        """The same point, to go elsewhere from."""
        other = copy(self)
        other.price, other.base, other.score = self.price.clone(), self.base.clone(), self.score.clone()
        other.slack, other.ties, other.share = self.slack.clone(), list(self.ties), []
        other._normals = list(self._normals)
        return other

    def hold(self, user: int, arm: int) -> Vertex:
        """Hold one user at a treatment from here on; the point stays, and is no longer the least."""
        keep = [k for k, t in enumerate(self.ties) if t.user != user]
        self.ties, self._normals, self.share = [self.ties[k] for k in keep], [self._normals[k] for k in keep], []
        self._give([user], [arm])
        kept = self.score[arm, user].clone()
        self.score[:, user] = -math.inf
        self.score[arm, user] = kept
        return self

    def minimise(self, most: int, least: float = -math.inf) -> int:
        """Go to the least dual in at most so many steps; returns those taken, or −1 where there is no least one.

        Args:
            most: steps.
            least: a bound below which nobody wants to know how far it falls.
        """
        self.share = []
        for step in range(most):
            if step % _LOOK == _LOOK - 1 and self.bound <= least:
                return step
            direction, left = self._direction()
            if direction is None:
                return step
            self.share = []
            if left is not None:
                self._leave(left)
            if not self._advance(direction):
                return -1
        return most

    def split(self) -> list[int]:
        """Users who get several treatments; none where :meth:`minimise` has not come to the end."""
        shares = zip(self.ties, self.share, strict=True) if self.share else ()
        return sorted({t.user for t, x in shares if t.user >= 0 and _SHARE < x < 1 - _SHARE})

    def rounded(self) -> Tensor:
        """``[n]``: everyone's treatment with the largest share."""
        treatment, rest = self.base.clone(), self._rest(self.share)
        most = dict(rest)
        for tie, x in zip(self.ties, self.share, strict=True) if self.share else ():
            if tie.user >= 0 and x > most[tie.user]:
                most[tie.user] = x
                treatment[tie.user] = tie.at
        return treatment

    def _rest(self, share: list[float]) -> dict[int, float]:
        """What the ties leave to the base of each user who has some."""
        rest: dict[int, float] = {}
        for tie, x in zip(self.ties, share, strict=True) if share else ():
            if tie.user >= 0:
                rest[tie.user] = rest.get(tie.user, 1.0) - x
        return rest

    def _facet(self, tie: Tie) -> Tensor:
        """``[P]``: normal of a facet, what the tie's treatment uses more than the user's best."""
        normal = torch.zeros_like(self.price)
        if tie.user < 0:
            normal[tie.at] = 1.0 if tie.user == AT_ZERO else -1.0
            return normal
        usage = self.block.usage[:, :, tie.user]
        more = usage[:, tie.at] - usage[:, int(self.base[tie.user])]
        return normal.index_add_(0, self.block.index[:, tie.user], more)

    def _enter(self, tie: Tie) -> None:
        self.ties.append(tie)
        self._normals.append(self._facet(tie))

    def _leave(self, at: int) -> None:
        del self.ties[at], self._normals[at]

    def _direction(self) -> tuple[Tensor | None, int | None]:
        """Where to go, and the tie that is left; ``None`` at the least dual."""
        if not self.ties:
            flat = not bool((self.slack.abs() > self._flat).any())
            return (None if flat else -self.slack / self.slack.abs().max()), None
        q, r = torch.linalg.qr(torch.stack(self._normals, dim=1))
        along = q.T @ self.slack
        if len(self.ties) < len(self.price):
            rest = self.slack - q @ along
            if bool((rest.abs() > self._flat).any()):
                return -rest / rest.abs().max(), None
        share = torch.linalg.solve_triangular(r, along[:, None], upper=True)[:, 0].tolist()
        if self._rebase(share):
            q, r = torch.linalg.qr(torch.stack(self._normals, dim=1))
        self.share = share
        edges = torch.linalg.solve_triangular(r, q.T, upper=True)
        size = edges.square().sum(dim=1).sqrt().tolist()
        worst, left = 0.0, None
        for k, (tie, x) in enumerate(zip(self.ties, share, strict=True)):
            least = -_SHARE if tie.user >= 0 else -float(self._flat[tie.at])
            if x < least and x / size[k] < worst:
                worst, left = x / size[k], k
        if left is None:
            return None, None
        return edges[left] / edges[left].abs().max(), left

    def _rebase(self, share: list[float]) -> bool:
        """Give each user a base with a share of at least 0, another one of the ties; whether any changed."""
        rest = self._rest(share)
        changed = [user for user, x in rest.items() if x < -_SHARE]
        for user in changed:
            mine = [k for k, t in enumerate(self.ties) if t.user == user]
            k = max(mine, key=lambda k: share[k])
            old = int(self.base[user])
            self._give([user], [self.ties[k].at])
            self.ties[k], share[k] = Tie(user, old), rest[user]
            for k in mine:
                self._normals[k] = self._facet(self.ties[k])
        return bool(changed)

    def _give(self, users: list[int], arms: list[int]) -> None:
        if not users:
            return
        block, user, arm = self.block, torch.tensor(users), torch.tensor(arms)
        less = block.usage[:, self.base[user], user] - block.usage[:, arm, user]
        self.slack.index_add_(0, block.index[:, user].reshape(-1), less.reshape(-1))
        self.base[user] = arm

    def _advance(self, direction: Tensor) -> bool:
        """To the lowest point along a direction; ``False`` where the dual falls for ever."""
        rate = self._rates(direction)
        base = self.base[None]
        speed = rate - rate.gather(0, base)
        lead = (self.score.gather(0, base) - self.score).clamp_(min=0)
        time = torch.where(speed > _FLAT, lead / speed, math.inf)
        tied = [t for t in self.ties if t.user >= 0]
        if tied:
            time[[t.at for t in tied], [t.user for t in tied]] = math.inf
        time, arm = time.min(dim=0)
        falls = torch.where(direction < -_FLAT, -self.price / direction, math.inf)
        falls = torch.where(direction > _FLAT, (self.upper - self.price) / direction, falls)
        for t in self.ties:
            if t.user < 0:
                falls[t.at] = math.inf
        stop, limit = falls.min(dim=0)
        count = _FIRST
        while True:
            found = self._events(time, arm, rate, {t.user for t in tied}, float(stop), direction, count)
            if found is not None:
                break
            count *= 8
        length, passed, enters = found
        if length == math.inf:
            return False
        self.price.add_(direction, alpha=length).clamp_(min=0)
        self.score.add_(rate, alpha=length)
        self._give(list(passed), list(passed.values()))
        if enters is None:
            zero = bool(direction[limit] < 0)
            self.price[limit] = 0.0 if zero else self.upper[limit]
            enters = Tie(AT_ZERO if zero else AT_UPPER, int(limit))
        self._enter(enters)
        return True

    def _events(
        self, time: Tensor, arm: Tensor, rate: Tensor, tied: set[int], stop: float, direction: Tensor, count: int
    ) -> tuple[float, dict[int, int], Tie | None] | None:
        """How far, who changes on the way, and at whom it ends; ``None`` if it takes more users than so many."""
        first = time.topk(min(count, len(time)), largest=False, sorted=True)
        users = first.indices
        beyond = float(first.values[-1]) if count < len(time) else math.inf
        rates, scores = rate[:, users].T.tolist(), self.score[:, users].T.tolist()
        events = list(zip(first.values.tolist(), users.tolist(), arm[users].tolist(), range(len(users)), strict=True))
        slope, passed = float(self.slack @ direction), {}
        bases = self.base[users].tolist()
        while events:
            at, user, to, k = heapq.heappop(events)
            if at >= stop:
                return stop, passed, None
            if at >= beyond:
                return None
            here = rates[k]
            slope += here[to] - here[bases[k]]
            if slope >= 0 or user in tied:
                return at, passed, Tie(user, to)
            passed[user] = bases[k] = to
            later = (
                ((scores[k][to] - s) / (x - here[to]), j)
                for j, (s, x) in enumerate(zip(scores[k], here, strict=True))
                if x - here[to] > _FLAT
            )
            turn = min(later, default=(math.inf, 0))
            heapq.heappush(events, (max(at, turn[0]), user, turn[1], k))
        return stop, passed, None

    def _rates(self, direction: Tensor) -> Tensor:
        """``[K, n]``: change of the scores for one step along a direction."""
        block = self.block
        if len(block.sizes) == len(direction):
            return (-direction @ block.usage.flatten(1)).view_as(block.value)
        rate = torch.zeros_like(block.value)
        for usage, price in zip(block.usage, direction[block.index], strict=True):
            rate.addcmul_(usage, price[None], value=-1)
        return rate
