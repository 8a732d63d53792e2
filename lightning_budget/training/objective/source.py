"""Which data the goal's multipliers and constants are measured on, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lightning_budget.errors import InputError

SourceName = Literal["full", "running", "batch"]


@dataclass(frozen=True)
class Source:
    """What the goal's numbers are measured on.

    Attributes:
        name: ``full``, predictions of the whole training split, every epoch or every few steps; ``batch``, each global
            batch for itself; ``running``, their running average.
        every_n_steps: of ``full``, counted from the end of the warm start and across epochs; ``None``: at the start of
            every epoch.
        momentum: of ``running``, the share that the past keeps at each step.

    Raises:
        InputError: for an unknown name or a number out of range.
    """

    name: SourceName = "full"
    every_n_steps: int | None = None
    momentum: float = 0.95

    def __post_init__(self) -> None:
        if self.name not in get_args(SourceName):
            allowed = ", ".join(get_args(SourceName))
            raise InputError(f"objective.source={self.name!r}", allowed, "choose one of the allowed")
        if self.every_n_steps is not None and (self.every_n_steps < 1 or self.name != "full"):
            raise InputError(
                f"objective.refresh_every_n_steps={self.every_n_steps} with source={self.name}",
                "at least 1, with source=full",
                "leave it out to refresh every epoch",
            )
        if not 0 <= self.momentum < 1:
            raise InputError(f"objective.momentum={self.momentum}", "at least 0, below 1", "0.95 averages 20 batches")

    def is_due(self, last: tuple[int, int] | None, epoch: int, step: int) -> bool:
        """Whether the whole split is to be measured again.

        Args:
            last: epoch and step of the last time; epoch, step: now.
        """
        if self.name != "full":
            return False
        if last is None:
            return True
        return epoch != last[0] if self.every_n_steps is None else step >= last[1] + self.every_n_steps
