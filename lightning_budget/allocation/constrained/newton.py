"""Multipliers of a block of users: Newton's method along a path of falling temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.rows import Block
from lightning_budget.allocation.constrained.smooth import SmoothDual, smooth_dual

_STEPS = 40
_BOUNDARY = 0.995
_FEW = 2048
_FAR = 60.0
"""A user whose best score leads by this many temperatures keeps it: the others' shares are below 1e-26."""


@dataclass(frozen=True)
class Path:
    """Where the path ended.

    Attributes:
        multiplier: ``[P]``.
        dual: the smoothed dual there.
        steps: Newton steps taken.
        visits: users looked at over all steps.
    """

    multiplier: Tensor
    dual: SmoothDual
    steps: int
    visits: int


def follow_path(block: Block, start: Tensor, first: float, last: float, upper: float | Tensor) -> Path:
    r"""Minimise the smoothed dual over :math:`0 \le \lambda \le u` for temperatures from ``first`` down to ``last``.

    Bounds are kept by logarithmic barriers whose weight is the temperature (a slack then counts as one undecided
    user), with slacks of their own as in primal-dual interior point methods. Users who are decided are left out of
    the rest of the path, and let in again if it ends where they would decide otherwise.

    Args:
        block: in units of which a typical user's value and usage are about 1.
        start: ``[P]`` multipliers, inside the bounds.
        first: temperature of the first point.
        last: temperature of the last point.
        upper: :math:`u`, a number or ``[P]``: the price of one unit by which a limit may be missed.

    Source:
        Nesterov 2005, doi:10.1007/s10107-004-0552-5 (smoothing); Wright 1997, doi:10.1137/1.9781611971453
        (primal-dual steps).
    """
    upper = torch.as_tensor(upper, dtype=start.dtype, device=start.device).expand_as(start)
    point = _Point(block, start.clamp(upper * 1e-9, upper * (1 - 1e-9)), upper, first)
    if not len(start):
        return Path(start, point.dual, 0, 0)
    active = block
    temperature, shrink, steps, visits = first, 0.2, 0, 0
    previous: tuple[float, Tensor] | None = None
    while True:
        taken = point.centre(active, temperature, 0.1 if temperature > last else 0.01)
        steps, visits = steps + taken, visits + taken * active.value.shape[1]
        if temperature <= last:
            break
        shrink = min(0.5, 2 * shrink) if taken > 6 else max(0.05, shrink / 2) if taken <= 3 else shrink
        if active.value.shape[1] > _FEW:
            active = undecided(active, point.multiplier, _FAR * temperature)
        cooler = max(last, shrink * temperature)
        here = (temperature, point.multiplier)
        if previous is not None:
            slope = (here[1] - previous[1]) / (here[0] - previous[0])
            point.predict(active, here[1] + (cooler - temperature) * slope, cooler)
        previous, temperature = here, cooler
    return Path(point.multiplier, point.dual, steps, visits)


def undecided(block: Block, multiplier: Tensor, margin: float) -> Block:
    """The users whose best score leads by less than ``margin``; limits are what the others leave."""
    score = block.scores(multiplier)
    top = score.topk(min(2, len(score)), dim=0)
    keep = top.values[0] - top.values[-1] < margin
    if not bool(keep.any()) or int(keep.sum()) > 0.8 * len(keep):
        return block
    fixed = block.given(top.indices[0]).masked_fill(keep, 0.0)
    return block.part(keep.nonzero()[:, 0], block.limit - block.used(fixed))


class _Point:
    """A point of the path with its slacks."""

    def __init__(self, block: Block, multiplier: Tensor, upper: Tensor, temperature: float) -> None:
        self.multiplier, self._upper = multiplier, upper
        self._low, self._high = temperature / multiplier, temperature / (upper - multiplier)
        self.dual = smooth_dual(block, multiplier, temperature)

    def centre(self, block: Block, temperature: float, tolerance: float) -> int:
        """Newton steps until the barrier function is within ``tolerance`` temperatures of its least value."""
        self.dual = smooth_dual(block, self.multiplier, temperature)
        for step in range(_STEPS):
            y, gap = self.multiplier, self._upper - self.multiplier
            slope = self.dual.gradient - temperature / y + temperature / gap
            move = self.dual.newton(-slope, self._low / y + self._high / gap)
            decrement = -float(slope @ move)
            if decrement <= 2 * tolerance * temperature:
                return step + 1
            length = min(1.0, _BOUNDARY / max(float((-move / y).max()), float((move / gap).max()), 1e-300))
            here = self._barrier(self.dual, y, temperature)
            for _ in range(40):
                trial = smooth_dual(block, y + length * move, temperature)
                if self._barrier(trial, y + length * move, temperature) <= here - 0.1 * length * decrement:
                    break
                length /= 2
            else:
                return step + 1  # rounding: no better point can be told from this one
            low = temperature / y - self._low - self._low / y * move
            high = temperature / gap - self._high + self._high / gap * move
            self.multiplier, self.dual = y + length * move, trial
            self._low = _near(self._low + length * low, temperature / self.multiplier)
            self._high = _near(self._high + length * high, temperature / (self._upper - self.multiplier))
        return _STEPS

    def predict(self, block: Block, multiplier: Tensor, temperature: float) -> None:
        """Go on from there if that is the better start."""
        y = torch.maximum(multiplier, 0.1 * self.multiplier)
        y = torch.minimum(y, self._upper - 0.1 * (self._upper - self.multiplier))
        old = self._barrier(smooth_dual(block, self.multiplier, temperature), self.multiplier, temperature)
        if self._barrier(smooth_dual(block, y, temperature), y, temperature) < old:
            self.multiplier = y
        self._low = _near(self._low, temperature / self.multiplier)
        self._high = _near(self._high, temperature / (self._upper - self.multiplier))

    def _barrier(self, dual: SmoothDual, y: Tensor, temperature: float) -> float:
        return dual.value - temperature * float(y.log().sum() + (self._upper - y).log().sum())


def _near(slack: Tensor, central: Tensor) -> Tensor:
    """A slack between a millionth and a million times its central value, so that the steps stay Newton's."""
    return torch.minimum(torch.maximum(slack, 1e-6 * central), 1e6 * central)
