"""From the policy at the multipliers to whole users within every limit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_budget.allocation.constrained.moves import Assignment, running
from lightning_budget.allocation.constrained.rows import Block

_ROUNDS = 400
_GROWTH = 1.5


def repair(block: Block, price: Tensor, treatment: Tensor, rounds: int = _ROUNDS) -> Assignment:
    r"""Move users until every limit holds, at least loss of Lagrangean value for the violation each move removes.

    .. math:: \min \frac{s_{i,\text{now}} - s_{ij}}{\text{violation removed}},
        \quad s_{ij} = v_{ij} - \sum_m \lambda_m a_{mij}

    Many moves are made at once, as far down that order as they still help together. Where no single move helps, the
    limits that are violated grow in weight (they win over those that are held) until one does.

    Args:
        block: units of which a typical user's value and usage are about 1.
        price: ``[P]`` multipliers.
        treatment: ``[n]`` int64 to start from.
        rounds: most lists of moves.

    Returns:
        Assignment: the best found; its violation is above 0 where the search failed.

    Source:
        Morris 1993, AAAI (weights that grow in local minima).
    """
    state = Assignment(block, treatment)
    weight = torch.ones_like(block.limit)
    score = block.scores(price)
    best, least = state.treatment, math.inf
    for _ in range(rounds):
        missed = state.violation(torch.ones_like(weight))
        if missed < least:
            best, least = state.treatment, missed
        if state.fits:
            break
        if not _step(state, score, weight):
            weight = torch.where(state.excess > 0, weight * _GROWTH, weight)
            weight /= weight.min()
    if not state.fits:
        state = Assignment(block, best)
    return state


def _step(state: Assignment, score: Tensor, weight: Tensor) -> bool:
    """One list of moves that lowers the weighted violation; whether there is one."""
    block, excess = state.block, state.excess
    removed = torch.zeros_like(score)
    over, weights = excess[block.index], weight[block.index]
    change = state.change()
    for r in range(len(block.usage)):
        removed += weights[r] * (over[r].clamp(min=0) - (over[r] + change[r]).clamp_(min=0))
    removed.masked_fill_(torch.isinf(score), 0.0)
    loss = score.gather(0, state.treatment[None]) - score
    helps = removed > 1e-12 * (1 + state.violation(weight))
    ratio = torch.where(helps, loss / removed, math.inf)
    ratio, arm = ratio.min(dim=0)
    users = torch.isfinite(ratio).nonzero()[:, 0]
    if not len(users):
        return False
    users = users[ratio[users].argsort(stable=True)]
    index = block.index[:, users]
    added = change[:, arm[users], users]

    def gained(added: Tensor, index: Tensor) -> Tensor:
        """Violation that each move of the list removes after those before it."""
        after = excess[index] + running(added, index)
        return (weight[index] * ((after - added).clamp(min=0) - after.clamp(min=0))).sum(dim=0)

    gain = gained(added, index)
    useful = gain > 1e-12 * (1 + state.violation(weight))
    chosen, total = useful.nonzero()[:, 0], gain.cumsum(0)
    if float(gained(added[:, chosen], index[:, chosen]).sum()) < 0.5 * float(total.max()):
        chosen = torch.arange(int(total.argmax()) + 1, device=users.device)
    state.give(users[chosen], arm[users[chosen]])
    return True
