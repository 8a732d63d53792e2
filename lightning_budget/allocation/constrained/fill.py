"""Turn what the limits leave over into value: single moves that fit, then pairs of moves that fit together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.moves import Assignment, running

_ROUNDS = 64
_LIST = 320
_PAIRS = 300
_WIDE = 1 << 12


def fill(state: Assignment, price: Tensor, enough: float) -> None:
    """Improve an allocation within the limits until it is worth ``enough`` or no move of one or two users helps.

    Args:
        state: within every limit; changed in place, and stays within.
        price: ``[P]`` multipliers; moves that lose least at these prices come first.
        enough: value of the block at which to stop.
    """
    score = state.block.scores(price)
    take_singles(state, score)
    for _ in range(_PAIRS):
        if state.worth >= enough or not _take_pair(state, score):
            break


def take_singles(state: Assignment, score: Tensor) -> None:
    """Moves of one user each that fit and gain, those that lose least of ``score [K, n]`` first."""
    for _ in range(_ROUNDS):
        if not _take_single(state, score):
            break


def _take_single(state: Assignment, score: Tensor) -> bool:
    block, room = state.block, -state.excess
    gain = block.value - block.value.gather(0, state.treatment[None])
    change = state.change()
    fits = gain > 0
    for r in range(len(change)):
        fits &= change[r] <= room[block.index[r]].clamp(min=0)
    loss = torch.where(fits, score.gather(0, state.treatment[None]) - score, math.inf)
    loss, arm = loss.min(dim=0)
    users = torch.isfinite(loss).nonzero()[:, 0]
    if not len(users):
        return False
    users = users[loss[users].argsort(stable=True)][:_WIDE]
    index, added = block.index[:, users], change[:, arm[users], users]
    # What a move frees may not be spent before it is sure to be made: only what is added counts.
    held = (running(added.clamp(min=0), index) <= room[index]).all(dim=0)
    taken = users[: 1 + int(held[1:].long().cumprod(0).sum())]
    state.give(taken, arm[taken])
    return True


def _take_pair(state: Assignment, score: Tensor) -> bool:
    """The best of the moves by two users among those that lose least; or by one, the other staying as it is."""
    block, room = state.block, -state.excess
    loss = score.gather(0, state.treatment[None]) - score
    loss.scatter_(0, state.treatment[None], math.inf)
    n = loss.shape[1]
    flat = loss.reshape(-1)
    count = min(_LIST, int(torch.isfinite(flat).sum()))
    if not count:
        return False
    move = flat.topk(count, largest=False).indices
    arm, user = move // n, move % n
    gain = block.value[arm, user] - block.value[state.treatment[user], user]
    added = block.usage[:, arm, user] - block.usage[:, state.treatment[user], user]
    index = block.index[:, user]
    # The last entry is the move that changes nothing.
    gain = torch.cat([gain, gain.new_zeros(1)])
    added = torch.cat([added, added.new_zeros(len(added), 1)], dim=1)
    index = torch.cat([index, index[:, :1]], dim=1)
    user = torch.cat([user, user.new_full((1,), -1)])
    both = gain[:, None] + gain
    fits = (both > 1e-12 * (1 + gain.abs().max())) & (user[:, None] != user)
    for r in range(len(added)):
        left = room[index[r]]
        meets = (index[r][:, None] == index[r]) * added[r]
        own = (added[r][:, None] + meets <= left[:, None]) | (added[r][:, None] + meets <= 0)
        fits &= own & own.T
    both = torch.where(fits, both, -math.inf)
    at = int(both.argmax())
    first, second = at // len(gain), at % len(gain)
    if not bool(fits[first, second]):
        return False
    pair = torch.tensor([m for m in (first, second) if m < count], device=move.device)
    state.give(user[pair], arm[pair])
    return True
