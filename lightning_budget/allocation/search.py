"""Narrow a problem down, pass by pass, to few enough users to sort."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from lightning_budget.allocation.fill import PATIENCE
from lightning_budget.allocation.finish import Found, Miss, OpenUsers, finish
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.problem import check_finite
from lightning_budget.allocation.sample import brackets_from_sample
from lightning_budget.allocation.settled import Settled, arm_dtype, settle

FINISH_USERS = 1 << 14
"""At most this many users are sorted; more are first thinned out by a bracket."""

_WIDENINGS = 4
"""Tries before a bracket is given up and reaches to the end of what is known."""

_MIDDLE = 0.03125
"""Part of a guessed bracket where the multiplier is looked for first among the users that the whole of it leaves."""

Bracket = tuple[float, float]


def few_enough(users: int) -> bool:
    """Whether so many are sorted without a pass before; no pass then looks for numbers that are not finite."""
    return users <= FINISH_USERS


def narrows(left: int, users: int) -> bool:
    """Whether a bracket has settled enough to try another one: many users who share a slope are only told by sorting.

    A pass over users takes a tenth of the time of sorting their steps.
    """
    return 8 * left <= 7 * users


def search(users: OpenUsers, total: float, leftover: bool, guess: Bracket | None = None) -> Found | Miss:
    """The critical multiplier of a total budget and the arms ``[n]`` of the users left, all spend exactly summed.

    One pass over the users inside a guessed bracket leaves few of them open, and the same is done with those. The
    guess is proved at the end; a miss moves it and repeats the pass.
    """
    n = users.value.shape[1]
    if few_enough(n):
        return finish(users, total, leftover)
    low, high = guess if guess is not None else guessed(users, [total])[0]
    if leftover and users.high < LARGEST:
        # The fill looks past the multiplier, at the steps of about as many users as it is patient.
        low -= 2 * PATIENCE / n * (users.high - users.low)
    low, high = min(max(low, users.low), users.high), max(min(high, users.high), users.low)
    tries = 0
    while True:
        # What was right for all users is thought to be near for those left, too.
        middle = _middle(guess) if guess is not None and tries == 0 else None
        found = _within(users, total, leftover, (low, high), middle)
        if isinstance(found, Found):
            return found
        # Spend with heavy tails misses by little.
        width = max(high - low, 1e-3 * high, 1e-300) * 4**tries
        tries += 1
        if found.above:
            if high >= users.high:
                return found
            low, high = high, min(high + width, users.high)
            high = users.high if tries >= _WIDENINGS else high
        else:
            if low <= users.low:
                return found
            high = min(found.fits, users.high)
            low = users.low if tries >= _WIDENINGS else max(min(low, high) - width, users.low)


def guessed(users: OpenUsers, totals: list[float]) -> list[Bracket]:
    """Brackets of total budgets, from a sample of the users left."""
    others, n = math.fsum(users.spend), users.value.shape[1]
    targets = [(total - others) / n for total in totals]
    return brackets_from_sample(users.value, users.cost, targets, users.low, users.high)


def inside(users: OpenUsers, part: Settled) -> OpenUsers:
    """What a pass over the users left leaves of them."""
    return OpenUsers(
        value=part.value,
        cost=part.cost,
        key=part.rows if users.key is None else users.key[part.rows],
        low=part.low,
        high=part.high,
        spend=users.spend + part.spend,
        worth=users.worth + part.worth,
    )


def _middle(bracket: Bracket) -> Bracket:
    low, high = bracket
    rim = 0.5 * (1 - _MIDDLE) * (high - low)
    return low + rim, high - rim


def _within(
    users: OpenUsers, total: float, leftover: bool, bracket: Bracket, next_guess: Bracket | None
) -> Found | Miss:
    n = users.value.shape[1]
    arm = torch.empty(n, dtype=arm_dtype(len(users.value)), device=users.value.device)
    (part,) = settle(users.value, users.cost, [bracket], arm)
    if not part.finite:
        check_finite(users.value.T, users.cost.T)
    left = inside(users, part)
    go_on = narrows(len(part.rows), n)
    found = search(left, total, leftover, next_guess) if go_on else finish(left, total, leftover)
    if isinstance(found, Miss):
        return found
    arm[part.rows] = found.arm.to(arm.dtype)
    return replace(found, arm=arm)
