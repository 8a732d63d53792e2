"""A world that changes over the days of the trial."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_budget.campaign.lists import Floats, Ints


@dataclass(frozen=True)
class Drift:
    """Additions to the purchase logit b and to the logarithm of the sensitivity.

    On day d of D::

        Δ(d) = linear · d / (D − 1) + weekly · sin(2π d / 7)

    Args:
        days: D, of all splits together.
        base, sensitivity: linear, from the first day to the last.
        weekly_base, weekly_sensitivity: amplitudes of the week.
    """

    days: int
    base: float = 0.0
    sensitivity: float = 0.0
    weekly_base: float = 0.0
    weekly_sensitivity: float = 0.0

    def of_base(self, day: Ints) -> Floats:
        """``[n]``, added to the purchase logit."""
        return self._table(self.base, self.weekly_base)[day]

    def of_sensitivity(self, day: Ints) -> Floats:
        """``[n]``, added to the logarithm of the sensitivity."""
        return self._table(self.sensitivity, self.weekly_sensitivity)[day]

    def _table(self, linear: float, weekly: float) -> Floats:
        day = np.arange(self.days)
        return linear * day / max(self.days - 1, 1) + weekly * np.sin(2 * np.pi * day / 7)
