"""The cost curve on a fixed grid of multipliers: constant memory for any number of rows, sums that add over processes.

A row is matched at the grid's points ``first <= k < last``, so it changes two entries of a difference array, whatever
the size of the grid. What the sums mean is read by :mod:`lightning_budget.metrics.functional.grid_curve`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_budget.allocation.compiled import usable
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import check_outcomes, check_user, check_weight
from lightning_budget.metrics.functional.matched import MatchedInterval
from lightning_budget.metrics.functional.poisson import hashed_counts, user_hash

_MANTISSA = 52


@dataclass(frozen=True)
class MultiplierGrid:
    """P multipliers: 0, then ``2**low_octave`` times powers of two, each octave cut evenly, and +inf.

    The place of a multiplier among them is read off the bits of its float, without a search.

    Attributes:
        low_octave, high_octave: the least and the largest finite multiplier but 0, as exponents of two.
        cuts: points per octave, a power of two; neighbours differ by at most a share of 1/cuts.
    """

    low_octave: int = -20
    high_octave: int = 20
    cuts: int = 32

    def __post_init__(self) -> None:
        if not -1000 <= self.low_octave < self.high_octave <= 1000:
            raise InputError(
                f"octaves {self.low_octave} to {self.high_octave}", "ascending, within ±1000", "-20 to 20 fits most"
            )
        if self.cuts < 1 or self.cuts & (self.cuts - 1) or self.cuts > 1 << 20:
            raise InputError(f"cuts={self.cuts}", "a power of two up to 2**20", "32 is usual")

    def __len__(self) -> int:
        return (self.high_octave - self.low_octave) * self.cuts + 3

    @property
    def shift(self) -> int:
        """Bits of a float that the grid does not look at."""
        return _MANTISSA - (self.cuts.bit_length() - 1)

    @property
    def base(self) -> int:
        """Leading bits of the least finite multiplier but 0."""
        return (self.low_octave + 1023) << (_MANTISSA - self.shift)

    def points(self) -> Tensor:
        """``[P]`` float64, ascending."""
        bits = (torch.arange(len(self) - 2) + self.base) << self.shift
        return torch.cat([torch.zeros(1).double(), bits.view(torch.float64), torch.full((1,), torch.inf).double()])

    def below(self, multiplier: Tensor) -> Tensor:
        """How many points lie strictly below each multiplier ``[N]`` ≥ 0 float64, where nothing is below 0."""
        leading = ((multiplier.view(torch.int64) - 1) >> self.shift) + 1 - self.base
        return torch.where(multiplier > 0, 1 + leading.clamp(0, len(self) - 2), 0)


def grid_changes(
    interval: MatchedInterval,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    grid: MultiplierGrid,
    weight: Tensor | None = None,
) -> Tensor:
    """Changes of Σ w, Σ w y^v and Σ w y^c on the way down to each point, and of their sizes: ``[6, P]`` float64.

    With w_i = s_i / p_i. They add over rows and processes. Entries 3 to 5 sum absolute changes, and bound what happens
    between two points.

    Args:
        interval: :func:`~lightning_budget.metrics.functional.matched.matched_interval` of the policy.
        value, cost, propensity: ``[N]``, of the arm given.
        weight: ``[N]`` s ≥ 0; 1 if not given.

    Raises:
        InputError: as :func:`~lightning_budget.metrics.functional.cost_curve.cost_curve`.
    """
    _check(interval, value, cost, propensity, weight)
    if usable(interval.lower):
        from lightning_budget.metrics.functional.compiled.grid_run import changes_of

        return changes_of(interval, value, cost, propensity, weight, grid.shift, grid.base, len(grid))
    first, last, mass = _rows(interval, propensity, grid, weight)
    changes = torch.zeros(6, len(grid), dtype=torch.float64, device=mass.device)
    parts = torch.stack([mass, mass * value.double(), mass * cost.double()])
    for place, sign in ((last, 1.0), (first, -1.0)):
        seen = place > 0
        changes[:3].index_add_(1, place[seen] - 1, sign * parts[:, seen])
        changes[3:].index_add_(1, place[seen] - 1, parts[:, seen].abs())
    return changes


def grid_resamples(
    interval: MatchedInterval,
    user: Tensor,
    value: Tensor,
    cost: Tensor,
    propensity: Tensor,
    grid: MultiplierGrid,
    resamples: int,
    seed: int = 0,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`grid_changes` on R Poisson resamples of the users, ``[R, 3, P]``, and Σ s of each, ``[R]``."""
    _check(interval, value, cost, propensity, weight)
    check_user(user, len(interval.lower))
    first, last, mass = _rows(interval, propensity, grid, weight)
    hashed = user_hash(user, seed)
    changes = torch.zeros(len(grid), 3, resamples + resamples % 2, dtype=torch.float64, device=mass.device)
    total = changes.new_zeros(changes.shape[2])
    size = torch.ones_like(mass) if weight is None else weight.double()
    if usable(mass):
        from lightning_budget.metrics.functional.compiled.grid_run import add_resamples_to

        add_resamples_to(total, changes, hashed, seed, first, last, mass, value, cost, size)
    else:
        parts = torch.stack([mass, mass * value.double(), mass * cost.double()])
        for r in range(resamples):
            count = hashed_counts(hashed, seed, [r])[0].double()
            total[r] = (count * size).sum()
            for place, sign in ((last, 1.0), (first, -1.0)):
                seen = place > 0
                changes[:, :, r].index_add_(0, place[seen] - 1, sign * (count * parts)[:, seen].T)
    return changes[:, :, :resamples].permute(2, 1, 0), total[:resamples]


def _check(interval: MatchedInterval, value: Tensor, cost: Tensor, propensity: Tensor, weight: Tensor | None) -> None:
    check_outcomes(value, cost, propensity, len(interval.lower))
    check_weight(weight, len(interval.lower))


def _rows(
    interval: MatchedInterval, propensity: Tensor, grid: MultiplierGrid, weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Points ``first <= k < last`` at which each row is matched, and its weight; ``[N]``."""
    mass = propensity.double().reciprocal()
    if weight is not None:
        mass = mass * weight
    mass = torch.where(interval.lower < interval.upper, mass, 0.0)
    last = grid.below(interval.upper) + (interval.upper == torch.inf)
    return grid.below(interval.lower), last, mass
