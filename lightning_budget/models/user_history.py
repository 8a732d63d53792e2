"""What training has seen of each user: how many rows, and his conversions' sizes and payments beside the predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_budget.models.everywhere import everywhere
from lightning_budget.models.user_effects import CHUNK, EFFECTS, SUMS, fit_effects
from lightning_budget.schema import UNKNOWN


class UserHistory(nn.Module):
    """Rows and random effects of each user, and the sums that the next ones are made of.

    On every process alike, 16 bytes a user, and 36 more in training; what is summed is no part of the state dictionary.

    Args:
        rows: R table rows of the users' id feature; row ``UNKNOWN`` has no history.
        feature: name of that feature.

    Attributes:
        counts: ``[R]``, training rows of the epoch settled last; effects: ``[R, 3]``, see
            :mod:`lightning_budget.models.user_effects`.
        running, sums: ``[R]`` rows and ``[R, 8]`` sums of the effects, of an epoch that is not settled whole; epoch:
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
        self.register_buffer("effects", torch.zeros(rows, EFFECTS))
        self.epoch = -1
        self.register_load_state_dict_pre_hook(_with_all_effects)

    def seen(self, values: Tensor, offsets: Tensor) -> Tensor:
        """``[N]`` training rows of users whose table rows are ``values``, user i's from ``offsets[i]`` on.

        In a first epoch those so far.
        """
        known = self._of(self.counts.unsqueeze(1), values, offsets)
        if self.running is not None:
            known = torch.maximum(known, self._of(self.running.unsqueeze(1), values, offsets))
        return known.squeeze(1)

    def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
        """``[N, 3]`` effects of users, given as to :meth:`seen`; 0 without an id."""
        return self._of(self.effects, values, offsets)

    def _of(self, table: Tensor, values: Tensor, offsets: Tensor) -> Tensor:
        rows = values.where(values < len(table), UNKNOWN)
        return F.embedding_bag(rows, table, offsets, mode="mean", include_last_offset=True)

    @torch.no_grad()
    def observe(self, rows: Tensor, real: Tensor, sums: Tensor, epoch: int) -> None:
        """Add training rows of all processes to the sums; another epoch's are forgotten first.

        A collective operation where there are several processes.

        Args:
            rows: ``[n]`` of the users; real: ``[n]`` 1, or 0 for filling; sums: ``[n, 8]``, what each row adds, see
                :func:`~lightning_budget.models.user_effects.sums_of`; epoch: theirs.
        """
        if self.running is None or self.sums is None:
            self.running, self.sums = torch.zeros_like(self.counts), self.counts.new_zeros(len(self.counts), SUMS)
        elif epoch != self.epoch:
            self.running.zero_()
            self.sums.zero_()
        self.epoch = epoch
        rows, real, *columns = everywhere([x.double() for x in (rows, real, *sums.unbind(1))])
        real = real * (rows != UNKNOWN)
        added = torch.stack(columns, 1) * real.unsqueeze(1)
        self.running.index_add_(0, rows.long(), real.to(self.running.dtype))
        self.sums.index_add_(0, rows.long(), added.to(self.sums.dtype))

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
            running, sums = (state[name].to(self.counts.device, copy=True) for name in ("running", "sums"))
            # Earlier ones have none of payment.
            self.running, self.sums = running, F.pad(sums, (0, SUMS - sums.shape[1]))
            self.epoch = state["epoch"]


def _with_all_effects(module: nn.Module, state: dict[str, Tensor], prefix: str, *others: Any) -> None:
    """Earlier files have no effects on payment."""
    if (effects := state.get(f"{prefix}effects")) is not None and effects.shape[1] < EFFECTS:
        state[f"{prefix}effects"] = F.pad(effects, (0, EFFECTS - effects.shape[1]))


def _total(counts: Tensor) -> float:
    """Exact, and in pieces: a sum in float64 copies what it sums."""
    return float(sum(part.sum(dtype=torch.float64) for part in counts.split(CHUNK)))
