"""Settle the few users whom the linear optimum splits and who are too large to be rounded: branch and bound on them."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.fill import take_singles
from lightning_budget.allocation.constrained.moves import Assignment
from lightning_budget.allocation.constrained.repair import repair
from lightning_budget.allocation.constrained.rows import Block
from lightning_budget.allocation.constrained.vertex import Vertex

_CORE, _CORE_EACH = 1 << 12, 1 << 6
"""Users who may be given another treatment, in all and for each limit."""

_STEPS = 2000
"""Work of all: a step of a linear optimum costs 1, rounding a node as much as so many:"""

_ROUNDING = 15
_STEPS_EACH = 400
_ROUNDS = 40
_QUEUE = 64

_SMALL = 0.05
"""Users below this share of what a node's rounding loses are not worth holding."""


def branch(state: Assignment, price: Tensor, enough: float) -> None:
    """Find a better allocation within the limits by holding large users at a treatment, one after the other.

    Every node is a linear optimum with some users held; the largest user that it splits is held at each of its
    treatments next. The best of these is gone into first, the others wait in the order of their bounds. At every node
    the split users are rounded and the allocation is repaired.

    Args:
        state: changed in place to the best allocation within the limits that was met; unchanged if none was better.
        price: ``[P]`` multipliers near the optimum.
        enough: value of the block at which to stop.

    Source:
        Land, Doig 1960, doi:10.2307/1910129.
    """
    whole, device = state.block.cpu(), state.treatment.device
    root = Vertex(whole, price.cpu())
    if root.minimise(_STEPS_EACH) < 0:
        return
    core, treatment = _core(root), root.rounded()
    elsewhere = torch.ones_like(treatment, dtype=torch.bool).index_fill(0, core, False)
    used = whole.used(whole.given(treatment) * elsewhere)
    worth = float((whole.value.gather(0, treatment[None])[0] * elsewhere).sum())
    best = state.worth - worth if state.fits else -math.inf
    search = _Search(whole.part(core, whole.limit - used), best, enough - worth)
    search.run(root.price)
    if search.found is not None:
        everyone = torch.arange(len(treatment), device=device)
        state.give(everyone, treatment.index_copy(0, core, search.found).to(device))


def _core(vertex: Vertex) -> Tensor:
    """The users whose treatment the smallest change of the prices would change, and those who are split."""
    block, score = vertex.block, vertex.score
    count = max(_CORE, _CORE_EACH * len(vertex.price))
    if score.shape[1] <= count:
        return torch.arange(score.shape[1])
    paid = torch.zeros_like(score)
    for more, price in zip(block.usage - block.given(vertex.base)[:, None], vertex.price[block.index], strict=True):
        paid.addcmul_(more.abs_(), price[None])
    lead = (score.gather(0, vertex.base[None]) - score) / paid
    lead = torch.where(paid > 0, lead, math.inf).amin(dim=0)
    lead[vertex.split()] = -1.0
    return lead.topk(count, largest=False).indices.sort().values


class _Waiting(NamedTuple):
    """A node below a bound, whose negative orders the queue; ``user`` has yet to be held, unless below 0."""

    below: float
    serial: int
    node: Vertex
    user: int
    arm: int


class _Search:
    def __init__(self, block: Block, best: float, enough: float) -> None:
        self.block, self.best, self.enough = block, best, enough
        self.found: Tensor | None = None
        self._steps, self._serial = 0, 0
        self._queue: list[_Waiting] = []

    def run(self, price: Tensor) -> None:
        """Search until ``enough`` is reached, nothing better is possible, or the steps are used up."""
        root = Vertex(self.block, price)
        self._wait(root.bound, root)
        while self._queue and self._goes_on(-self._queue[0].below):
            waiting = heapq.heappop(self._queue)
            node = waiting.node if waiting.user < 0 else waiting.node.copy().hold(waiting.user, waiting.arm)
            node = node if self._solve(node) else None
            while node is not None and self._goes_on(node.bound):
                worth = self._round(node)
                large = self._largest(node, _SMALL * (node.bound - worth))
                node = self._deeper(node, large) if large is not None else None
            if len(self._queue) > 2 * _QUEUE:
                self._queue = heapq.nsmallest(_QUEUE, self._queue)

    def _goes_on(self, bound: float) -> bool:
        return self._steps < _STEPS and self.best < self.enough and self.best < bound - 1e-9 * abs(bound)

    def _wait(self, bound: float, node: Vertex, user: int = -1, arm: int = 0) -> None:
        self._serial += 1
        heapq.heappush(self._queue, _Waiting(-bound, self._serial, node, user, arm))

    def _solve(self, vertex: Vertex) -> bool:
        """Whether there is an optimum that is better than what was found."""
        taken = vertex.minimise(_STEPS_EACH, self.best)
        self._steps += max(1, abs(taken))
        return taken >= 0 and vertex.bound > self.best

    def _deeper(self, node: Vertex, user: int) -> Vertex | None:
        """The node with this user at the treatment whose bound is highest; the others join the queue."""
        score, bound = node.score[:, user].tolist(), node.bound
        top, best = max(score), None
        for arm in sorted(range(len(score)), key=lambda a: -score[a]):
            most = bound - (top - score[arm])
            if most <= self.best:
                break
            if best is not None and most <= best.bound:
                self._wait(most, node, user, arm)
                continue
            child = node.copy().hold(user, arm)
            if not self._solve(child):
                continue
            if best is not None:
                best, child = (best, child) if best.bound >= child.bound else (child, best)
                self._wait(child.bound, child)
            else:
                best = child
        return best

    def _round(self, node: Vertex) -> float:
        """Value of the node's whole users, kept if it is the best."""
        # Held users lose nothing by another treatment: without the mask they would be the first to be moved back.
        block = replace(self.block, value=self.block.value.masked_fill(torch.isinf(node.score), -math.inf))
        self._steps += _ROUNDING
        state = repair(block, node.price, node.rounded(), _ROUNDS)
        if not state.fits:
            return -math.inf
        take_singles(state, node.score)
        worth = state.worth
        if worth > self.best:
            self.best, self.found = worth, state.treatment
        return worth

    def _largest(self, node: Vertex, least: float) -> int | None:
        """Of the split users the one who pays for the largest change of usage; ``None`` if that is below ``least``."""
        users = node.split()
        if not users:
            return None
        user, block = torch.tensor(users), self.block
        change = (block.usage[:, :, user] - block.usage[:, node.base[user], user][:, None]).abs_()
        paid = (change * node.price[block.index[:, user]][:, None]).sum(dim=0)
        size, at = paid.masked_fill_(torch.isinf(node.score[:, user]), 0.0).amax(dim=0).max(dim=0)
        # Where nothing was found yet nobody is small.
        return users[int(at)] if least == math.inf or float(size) >= least else None
