"""The pass of :mod:`lightning_budget.allocation.settled` in plain torch, for any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.settled import Settled, tie_of
from lightning_budget.allocation.summation import split_parts

PIECE = 1 << 16
"""Users on a CPU whose scores stay in cache."""

DEVICE_PIECE = 1 << 21
"""Users on an accelerator, where a launch costs more than a cache miss."""


def settle(value: Tensor, cost: Tensor, brackets: list[tuple[float, float]], arm: Tensor | None) -> list[Settled]:
    """See :func:`lightning_budget.allocation.settled.settle`."""
    users = value.shape[1]
    size = min(PIECE if value.device.type == "cpu" else DEVICE_PIECE, max(users, 1))
    value, cost = value.detach(), cost.detach()
    scratch = _Scratch(value, size)
    found = [([], [], [], [], []) for _ in brackets]
    finite = True
    for start in range(0, users, size):
        v, c = scratch.bring_in(value, cost, start, min(size, users - start))
        bound_v, bound_c = _bound(v), _bound(c)
        finite = finite and math.isfinite(bound_v) and math.isfinite(bound_c)
        for (low, high), (rows, values, costs, spend, worth) in zip(brackets, found, strict=True):
            chosen = None if arm is None else arm[start : start + v.shape[1]]
            is_open = scratch.judge(v, c, low, high, bound_v, bound_c, chosen)
            if 4 * int(is_open.sum()) > len(is_open):
                # Few users of a size beyond the others' widen the margin for all: each by its own size, then.
                is_open = scratch.judge(v, c, low, high, *scratch.sizes(v, c), chosen)
            left = is_open.nonzero().squeeze(1)
            rows.append(left + start)
            values.append(v[:, left])
            costs.append(c[:, left])
            spend += split_parts(scratch.paid[: v.shape[1]].masked_fill_(is_open, 0), bound_c)
            if arm is not None:
                worth += split_parts(scratch.worth[: v.shape[1]].masked_fill_(is_open, 0), bound_v)
    none = value.new_empty(0, dtype=torch.int64)
    return [
        Settled(
            low=low,
            high=high,
            rows=torch.cat([none, *rows]),
            value=torch.cat([value[:, :0], *values], dim=1),
            cost=torch.cat([cost[:, :0], *costs], dim=1),
            spend=spend,
            worth=worth,
            finite=finite,
        )
        for (low, high), (rows, values, costs, spend, worth) in zip(brackets, found, strict=True)
    ]


class _Scratch:
    """Buffers of a piece of users, made once: fresh memory for every product costs more than the product."""

    def __init__(self, like: Tensor, size: int) -> None:
        arms = like.shape[0]
        self._v, self._c = like.new_empty(arms, size), like.new_empty(arms, size)
        self._of = [like.new_empty(size) for _ in range(11)]
        self.paid, self.worth = self._of[0], self._of[1]
        self._extra = like.new_empty(size)
        self._number = like.new_empty(size)

    def bring_in(self, value: Tensor, cost: Tensor, start: int, n: int) -> tuple[Tensor, Tensor]:
        """Value and cost ``[K, n]`` contiguous over users: the input itself where it is."""
        v, c = value[:, start : start + n], cost[:, start : start + n]
        if v.stride(1) != 1:
            v = self._v[:, :n].copy_(v)
        if c.stride(1) != 1:
            c = self._c[:, :n].copy_(c)
        return v, c

    def sizes(self, v: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Largest absolute value and cost of each user, ``[n]``."""
        size_v, size_c, other = (x[: v.shape[1]] for x in self._of[2:5])
        for x, size in ((v, size_v), (c, size_c)):
            torch.abs(x[0], out=size)
            for j in range(1, len(x)):
                torch.maximum(size, torch.abs(x[j], out=other), out=size)
        return size_v, size_c

    def judge(
        self,
        v: Tensor,
        c: Tensor,
        low: float,
        high: float,
        size_v: float | Tensor,
        size_c: float | Tensor,
        arm: Tensor | None,
    ) -> Tensor:
        """Who is open, ``[n]``; leaves cost and value at ``high`` in ``paid`` and ``worth``, and the arm in ``arm``.

        Args:
            size_v, size_c: largest absolute value and cost, of all n users or of each.
        """
        n = v.shape[1]
        paid, worth, _, _, score, score_low, best, second, best_low, second_low, at_low = (x[:n] for x in self._of)
        tie, tiny, smallest = tie_of(v.element_size())
        cheapest, most = high >= LARGEST, torch.finfo(v.dtype).max
        # Products of a tiny multiplier lose their precision, a huge one is none; NaN leads nowhere clearly.
        low, high = (end if end == 0 or smallest <= end <= most else math.nan for end in (low, high))

        def scores(j: int) -> None:
            if cheapest:
                torch.neg(c[j], out=score)
            else:
                torch.sub(v[j], c[j], alpha=high, out=score)
            torch.sub(v[j], c[j], alpha=low, out=score_low)

        for j in range(len(v)):
            scores(j)
            if j == 0:
                best.copy_(score)
                best_low.copy_(score_low)
                second.fill_(-math.inf)
                second_low.fill_(-math.inf)
                continue
            # No more than the best so far, no less than the second: the second from now on.
            torch.clamp(score, min=second, max=best, out=second)
            torch.maximum(best, score, out=best)
            torch.clamp(score_low, min=second_low, max=best_low, out=second_low)
            torch.maximum(best_low, score_low, out=best_low)
        # Of the settled one arm alone has the best score. A sum of products with 0 and 1 picks what is its, exactly,
        # and costs a fraction of a selection by booleans.
        number = self._number[:n]
        for x in (paid, worth, at_low, number):
            x.zero_()
        for j in range(len(v)):
            scores(j)
            chosen = score.eq_(best)
            paid.addcmul_(c[j], chosen)
            at_low.addcmul_(score_low, chosen)
            if arm is not None:
                worth.addcmul_(v[j], chosen)
                number.add_(chosen, alpha=j)
        if arm is not None:
            arm.copy_(number.clamp_(max=len(v) - 1))
        settled = at_low.eq_(best_low)
        settled *= best.sub_(second).gt_(0 if cheapest else self._margin(size_v, size_c, high, tie, tiny))
        settled *= best_low.sub_(second_low).gt_(self._margin(size_v, size_c, low, tie, tiny))
        return settled.eq(0)

    def _margin(
        self, size_v: float | Tensor, size_c: float | Tensor, multiplier: float, tie: float, tiny: float
    ) -> float | Tensor:
        if not (isinstance(size_v, Tensor) and isinstance(size_c, Tensor)):
            return tie * (size_v + multiplier * size_c) + tiny
        spare = self._extra[: len(size_v)]
        return torch.add(size_v, size_c, alpha=multiplier, out=spare).mul_(tie).add_(tiny)


def _bound(x: Tensor) -> float:
    """Largest absolute entry; NaN stays NaN."""
    least, most = (float(end) for end in torch.aminmax(x))
    return max(-least, most) if least == least else math.nan
