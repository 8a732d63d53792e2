"""What training has seen of each user: how many rows, and how large his conversions were beside the predicted ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_budget.models.everywhere import everywhere
from lightning_budget.models.user_effects import CHUNK, SUMS, fit_effects
from lightning_budget.schema import UNKNOWN


class UserHistory(nn.Module):
    """Rows and random effects of each user, and the sums that the next ones are made of.

    On every process alike, 12 bytes a user, and 28 more in training; what is summed is no part of the state dictionary.

    Args:
        rows: R table rows of the users' id feature; row ``UNKNOWN`` has no history.
        feature: name of that feature.

    Attributes:
        counts: ``[R]``, training rows of the epoch settled last; effects: ``[R, 2]``, see
            :mod:`lightning_budget.models.user_effects`.
        running, sums: ``[R]`` rows and ``[R, 6]`` sums of the effects, of an epoch that is not settled whole; epoch:
            which.
    """

    counts: Tensor
    effects: Tensor
    running: Tensor | None = None
    sums: Tensor | None = None

    def __init__(self, rows: int, feature: str) -> None:
        super().__init__()
        self.feature = feature
        self.register_buffer("counts", torch.zeros(rows))
        self.register_buffer("effects", torch.zeros(rows, 2))
        self.epoch = -1

    def seen(self, values: Tensor, offsets: Tensor) -> Tensor:
        """``[N]`` training rows of users whose table rows are ``values``, user i's from ``offsets[i]`` on.

        In a first epoch those so far.
        """
        known = self._of(self.counts.unsqueeze(1), values, offsets)
        if self.running is not None:
            known = torch.maximum(known, self._of(self.running.unsqueeze(1), values, offsets))
        return known.squeeze(1)

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        """``[N, 2]`` effects of users, given as to :meth:`seen`; 0 without an id."""
        return self._of(self.effects, values, offsets)

    def _of(self, table: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        rows = values.where(values < len(table), UNKNOWN)
        return F.embedding_bag(rows, table, offsets, mode="mean", include_last_offset=True)

    @torch.no_grad()
    def observe(self, rows: Tensor, real: Tensor, converted: Tensor, excess: Tensor, dose: Tensor, epoch: int) -> None:
        """Add training rows of all processes to the sums, ``[n]`` each; another epoch's are forgotten first.

        A collective operation where there are several processes.

        Args:
            rows: of the users; real: 1, or 0 for filling; converted: 1 for conversions, else 0; excess: of those,
                logarithm of the size less the predicted one; dose: d; epoch: theirs.
        """
        if self.running is None or self.sums is None:
            self.running, self.sums = torch.zeros_like(self.counts), self.counts.new_zeros(len(self.counts), SUMS)
        elif epoch != self.epoch:
            self.running.zero_()
            self.sums.zero_()
        self.epoch = epoch
        mine = [x.double() for x in (rows, real, converted, torch.where(converted > 0, excess, 0.0), dose)]
        rows, real, converted, e, d = everywhere(mine)
        real = real * (rows != UNKNOWN)
        one = torch.ones_like(e)
        columns = torch.stack((one, d, d**2, e, d * e, e**2), 1) * (real * converted).unsqueeze(1)
        self.running.index_add_(0, rows.long(), real.to(self.running.dtype))
        self.sums.index_add_(0, rows.long(), columns.to(self.sums.dtype))

    @torch.no_grad()
    def settle(self, whole: bool) -> dict[str, float]:
        """Counts and effects from the sums; without sums they stay, and effects without conversions, too.

        Args:
            whole: that the sums are of a whole epoch, and done with; else what was counted of more rows stays, too.

        Returns:
            Standard deviations of the effects, see :func:`~lightning_budget.models.user_effects.fit_effects`.
        """
        if self.running is None or self.sums is None:
            return {}
        found = {}
        if whole or _total(self.running) >= _total(self.counts):
            self.counts.copy_(self.running)
            found = fit_effects(self.sums, self.effects)
        if whole:
            self.running = self.sums = None
        return found

    def state(self) -> dict[str, Any] | None:
        """Sums and their epoch, for a checkpoint inside an epoch; ``None``: there are none."""
        if self.running is None or self.sums is None:
            return None
        return {"running": self.running.cpu().clone(), "sums": self.sums.cpu().clone(), "epoch": self.epoch}

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Inverse of :meth:`state`."""
        self.running = self.sums = None
        if state is not None:
            self.running, self.sums = (state[name].to(self.counts.device, copy=True) for name in ("running", "sums"))
            self.epoch = state["epoch"]


def _total(counts: Tensor) -> float:
    """Exact, and in pieces: a sum in float64 copies what it sums."""
    return float(sum(part.sum(dtype=torch.float64) for part in counts.split(CHUNK)))
