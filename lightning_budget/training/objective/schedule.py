"""When the goal joins the loss, how much it weighs and how wide it is smoothed."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_budget.errors import InputError


@dataclass(frozen=True)
class Schedule:
    """A warm start without the goal, a linear ramp of its weight, and geometric annealing of its width.

    With x epochs done, the warm start's W, T in all, and n rows that paid, see
    :func:`~lightning_budget.training.objective.credibility.paying_rows`::

        weight(x) = weight · n / (n + prior_rows) · min(1, (x − W) / ramp_epochs)
        width factor(x) = width_start^(1 − u) · width_end^u,      u = (x − W) / (T − W)

    Attributes:
        weight: of the goal at full strength, in units of the value's scale.
        warm_start_epochs: epochs of prediction loss alone.
        ramp_epochs: over which the weight rises from 0; 0: at once.
        width_start, width_end: factors of the estimator's width (temperature, σ, h) at both ends.
        prior_rows: n at which the goal has half its weight: of few rows its gradient is noise, and prediction alone
            trains. 0: the whole weight on any trial. Source: Bühlmann 1967, whose credibility factor n / (n + k) it is.

    Raises:
        InputError: for numbers out of range.
    """

    weight: float = 1.0
    warm_start_epochs: int = 2
    ramp_epochs: float = 0.0
    width_start: float = 1.0
    width_end: float = 1.0
    prior_rows: float = 0.0

    def __post_init__(self) -> None:
        if self.warm_start_epochs < 0:
            raise InputError(f"objective.warm_start_epochs={self.warm_start_epochs}", "at least 0", "raise it")
        if not 0 < self.weight < math.inf:
            raise InputError(
                f"objective.weight={self.weight}", "a number above 0", "use objective=none for two-stage training"
            )
        if not 0 <= self.prior_rows < math.inf:
            raise InputError(
                f"objective.prior_rows={self.prior_rows}", "0 or more", "0 gives the goal its whole weight"
            )
        if not 0 <= self.ramp_epochs < math.inf:
            raise InputError(f"objective.ramp_epochs={self.ramp_epochs}", "0 or more", "0 ramps nothing")
        for name in ("width_start", "width_end"):
            if not 0 < (factor := getattr(self, name)) < math.inf:
                raise InputError(f"objective.{name}={factor}", "a number above 0", "1 anneals nothing")

    def is_active(self, epoch: int) -> bool:
        """Whether the goal is part of the loss in this epoch."""
        return epoch >= self.warm_start_epochs

    def weight_at(self, epochs_done: float, paying_rows: float = math.inf) -> float:
        since = epochs_done - self.warm_start_epochs
        ramp = 1.0 if since >= self.ramp_epochs else max(0.0, since) / self.ramp_epochs
        return self.weight * self.credibility(paying_rows) * ramp

    def credibility(self, paying_rows: float) -> float:
        """Share of its weight that the goal has on a trial, between 0 and 1."""
        return 1.0 if self.prior_rows == 0 or paying_rows == math.inf else paying_rows / (paying_rows + self.prior_rows)

    def width_at(self, epochs_done: float, epochs: float) -> float:
        """Args: epochs: T, of the run; infinite where it has no end, and nothing is annealed then."""
        length = epochs - self.warm_start_epochs
        done = min(1.0, max(0.0, (epochs_done - self.warm_start_epochs) / length)) if length > 0 else 1.0
        return self.width_start ** (1 - done) * self.width_end**done
