"""Bootstrap weights that are a function of the user's identity alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_budget.errors import InputError
from lightning_budget.metrics.functional.checks import check_user

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def poisson_weights(user: Tensor, resamples: int, seed: int) -> Tensor:
    """Poisson(1) counts hashed from (seed, resample, user).

    All rows of a user share a count, in every order of rows, shard and process.

    Args:
        user: ``[N]`` int64 identities.
        resamples: R ≥ 1; the first R of more resamples are the same.
        seed: names the stream.

    Returns:
        ``[R, N]`` uint8.

    Raises:
        InputError: if ``user`` is not int64 of one dimension or ``resamples`` is below 1.

    Source: Chamandy, Muralidharan, Najmi, Naidu 2012 (Google); SplitMix64: Steele, Lea, Flood 2014,
    doi:10.1145/2660193.2660195.
    """
    check_user(user, user.numel())
    if resamples < 1:
        raise InputError(f"resamples={resamples}", "at least 1", "200 give an interval, 1000 a smooth one")
    return hashed_counts(user_hash(user, seed), seed, range(resamples))


def user_hash(user: Tensor, seed: int) -> Tensor:
    """``[N]`` int64 hash of (seed, user), the part that resamples share."""
    return _mix(user * _signed(_GOLDEN) + _signed(_mix_int(seed)))


def hashed_counts(hashed: Tensor, seed: int, resamples: Iterable[int]) -> Tensor:
    """Counts ``[r, N]`` uint8 of the named resamples, from :func:`user_hash`."""
    keys = [_signed(_mix_int(_mix_int(seed) + (r + 1) * _GOLDEN)) for r in resamples]
    edges = torch.tensor(_poisson_cdf(), dtype=torch.float64, device=hashed.device)
    counts = torch.empty(len(keys), len(hashed), dtype=torch.uint8, device=hashed.device)
    for i, key in enumerate(keys):
        uniform = ((_mix(hashed ^ key) >> 11) & ((1 << 53) - 1)).double().add_(0.5).mul_(2.0**-53)
        counts[i] = torch.bucketize(uniform, edges, out_int32=True)
    return counts


def _poisson_cdf() -> list[float]:
    """P(X ≤ k) of Poisson(1) for k = 0, 1, … up to where it rounds to 1."""
    terms, total = [], 0.0
    for k in range(18):
        total += math.exp(-1.0) / math.factorial(k)
        terms.append(total)
    return terms


def _mix(x: Tensor) -> Tensor:
    # int64 products wrap as uint64 ones do; the mask makes the arithmetic shift a logical one.
    for shift, factor in _MIX:
        x = (x ^ ((x >> shift) & (_MASK >> shift))) * _signed(factor)
    return x ^ ((x >> 31) & (_MASK >> 31))


def _mix_int(x: int) -> int:
    x &= _MASK
    for shift, factor in _MIX:
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return x ^ (x >> 31)


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
