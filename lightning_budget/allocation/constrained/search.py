"""Search among the users whose treatment costs least to change: tabu search in many chains at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.moves import Assignment

_CHAINS, _MOST_CHAINS = 12, 96
_MOVES = 768
_STEPS = 600
_PATIENCE = 200


def search(state: Assignment, price: Tensor, enough: float) -> None:
    """Find a better allocation within the limits by going through ones that are not.

    Every chain makes its best move, whatever it is worth, and may not move that user again for some steps. What is
    above a limit is charged at a rate that rises while the chain is outside the limits and falls while it is inside.

    Args:
        state: changed in place to the best allocation within the limits that was met; unchanged if none was.
        price: ``[P]`` multipliers; users who lose least at these prices take part.
        enough: value of the block at which to stop.

    Source:
        Glover, Kochenberger 1996, doi:10.1007/978-1-4613-1361-8_25 (oscillation around the limits).
    """
    start = state.worth
    if state.fits and start >= enough:
        return
    chains = _Chains(state, price)
    since = 0
    for step in range(_STEPS):
        since = 0 if chains.step(step) else since + 1
        if start + chains.best >= enough or since > _PATIENCE:
            break
    if chains.best > -math.inf:
        state.give(chains.users, chains.found)


class _Chains:
    """C chains over the u users that take part; Q moves, one for each treatment that one of them may get."""

    def __init__(self, state: Assignment, price: Tensor) -> None:
        block = state.block
        score = block.scores(price)
        loss = score.gather(0, state.treatment[None]) - score
        loss.scatter_(0, state.treatment[None], math.inf)
        count = min(loss.shape[1], max(1, _MOVES // len(loss)))
        self.users = loss.amin(dim=0).topk(count, largest=False).indices
        part = block.part(self.users, block.limit)
        self._arm, self._user = torch.isfinite(part.value).nonzero(as_tuple=True)
        self._value = part.value[self._arm, self._user]
        self._usage = part.usage[:, self._arm, self._user]
        self._index = part.index[:, self._user]
        self._usage_of, self._value_of = part.usage, part.value
        self._index_of = part.index
        device = block.value.device
        # A step costs as much for a few moves as for many: small problems get more chains.
        self._count = min(_MOST_CHAINS, max(_CHAINS, _CHAINS * _MOVES // max(1, len(self._arm))))
        self._now = state.treatment[self.users].repeat(self._count, 1)
        self._gain = torch.zeros(self._count, dtype=torch.float64, device=device)
        self._rounding = state.rounding
        self._excess = state.excess.repeat(self._count, 1)
        self._generator = torch.Generator().manual_seed(0)
        rate = torch.rand(self._count, 1, generator=self._generator, dtype=torch.float64).to(device) * 3 + 0.5
        self._rate = rate * (price + 0.05)
        self._free_at = torch.zeros(self._count, count, dtype=torch.int64, device=device)
        self._chain = torch.arange(self._count, device=device)
        self.best, self.found = 0.0 if state.fits else -math.inf, self._now[0].clone()

    def step(self, step: int) -> bool:
        """One move of every chain; whether a better allocation within the limits was met."""
        now = self._now[:, self._user]
        given = self._usage_of[:, self._now, torch.arange(len(self.users), device=now.device)]
        gain = self._value - self._value_of[now, self._user]
        worth = gain.clone()
        inside = torch.ones_like(worth, dtype=torch.bool)
        outside = self._excess.clamp(min=0).sum(dim=1, keepdim=True)
        freed = torch.zeros_like(worth)
        for usage, had, index in zip(self._usage, given, self._index, strict=True):
            over = self._excess[:, index]
            after = over + usage - had[:, self._user]
            change = after.clamp(min=0) - over.clamp(min=0)
            worth -= self._rate[:, index] * change
            freed -= change
            inside &= after <= 0
        # All limits hold after the move if those of the user do and nothing is missed elsewhere.
        inside &= freed >= outside * (1 - 1e-12)
        better = inside & (self._gain[:, None] + gain > self.best + 1e-12)
        stays = self._arm == now
        barred = (self._free_at[:, self._user] > step) & ~better | stays
        worth = torch.where(better, worth + gain.abs(), worth).masked_fill_(barred, -math.inf)
        move = worth.argmax(dim=1)
        can = torch.isfinite(worth[self._chain, move])
        user, arm = self._user[move], torch.where(can, self._arm[move], self._now[self._chain, self._user[move]])
        added = self._usage_of[:, arm, user] - given[:, self._chain, user]
        self._excess.scatter_add_(1, self._index_of[:, user].T, added.T)
        self._gain += self._value_of[arm, user] - self._value_of[self._now[self._chain, user], user]
        self._now[self._chain, user] = arm
        wait = torch.randint(4, 16, (self._count,), generator=self._generator).to(user.device)
        self._free_at[self._chain, user] = step + wait
        missed = self._excess > 0.5 * self._rounding
        self._rate *= torch.where(missed, 1.15, 0.97)
        good = torch.where(missed.any(dim=1), -math.inf, self._gain)
        top = int(good.argmax())
        if float(good[top]) <= self.best + 1e-12:
            return False
        self.best, self.found = float(good[top]), self._now[top].clone()
        return True
