"""What training has seen of each user: how many rows, and how large his conversions were beside the predicted ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_budget.models.everywhere import everywhere
from lightning_budget.models.user_effects import SUMS, fit_effects
from lightning_budget.schema import UNKNOWN


class UserHistory(nn.Module):
    """Rows and random effects of each user, and the sums that the next ones are made of.

    On every process alike, 40 bytes a user; what the sums hold is no part of the state dictionary.

    Args:
        rows: R table rows of the users' id feature; row ``UNKNOWN`` has no history.
        feature: name of that feature.

    Attributes:
        counts: ``[R]``, training rows of the epoch settled last; effects: ``[R, 2]``, see
            :mod:`lightning_budget.models.user_effects`.
        sums: ``[R, 7]`` once there are some, those of the effects and the number of rows; epoch: of those rows.
    """

    counts: Tensor
    effects: Tensor
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
        if self.sums is not None:
            known = torch.maximum(known, self._of(self.sums[:, SUMS:], values, offsets))
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
        if self.sums is None or epoch != self.epoch:
            self.sums, self.epoch = self.effects.new_zeros(len(self.effects), SUMS + 1), epoch
        mine = [x.double() for x in (rows, real, converted, torch.where(converted > 0, excess, 0.0), dose)]
        rows, real, converted, e, d = everywhere(mine)
        real = real * (rows != UNKNOWN)
        one = torch.ones_like(e)
        columns = torch.stack((one, d, d**2, e, d * e, e**2), 1) * converted.unsqueeze(1)
        counted = torch.cat((columns, one.unsqueeze(1)), 1) * real.unsqueeze(1)
        self.sums.index_add_(0, rows.long(), counted.to(self.sums.dtype))

    @torch.no_grad()
    def settle(self, whole: bool) -> dict[str, float]:
        """Counts and effects from the sums; without sums they stay.

        Args:
            whole: that the sums are of a whole epoch; else counts and effects of more rows than theirs stay, too.

        Returns:
            Standard deviations of the effects, see :func:`~lightning_budget.models.user_effects.fit_effects`.
        """
        if self.sums is None or not (whole or self.sums[:, SUMS].sum() >= self.counts.sum()):
            return {}
        self.counts.copy_(self.sums[:, SUMS])
        found = fit_effects(self.sums[:, :SUMS])
        if found is None:
            return {}
        self.effects.copy_(found[0])
        return found[1]

    def state(self) -> dict[str, Any] | None:
        """Sums and their epoch, for a checkpoint inside an epoch; ``None``: there are none."""
        return None if self.sums is None else {"sums": self.sums.cpu().clone(), "epoch": self.epoch}

    def resume(self, state: Mapping[str, Any] | None) -> None:
        """Inverse of :meth:`state`."""
        self.sums = None if state is None else state["sums"].to(self.effects.device, copy=True)
        self.epoch = -1 if state is None else state["epoch"]
