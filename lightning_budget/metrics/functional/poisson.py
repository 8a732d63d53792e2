"""Bootstrap weights that are a function of the user's identity alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_budget.metrics.functional.checks import check_resamples, check_user

_MASK = (1 << 64) - 1
_LOW = (1 << 32) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_FIRST, _SECOND = 0x85EBCA6B, 0xC2B2AE35

EDGES = tuple(65536 - x for x in (41427, 17317, 5263, 1244, 240, 39, 5, 1))
"""A 16-bit number at or above k of them counts k: P(X ≥ k) of Poisson(1) in 65,536ths, whose sum is a mean of 1."""


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
    doi:10.1145/2660193.2660195; MurmurHash3: Appleby 2011.
    """
    check_user(user, user.numel())
    check_resamples(resamples)
    return hashed_counts(user_hash(user, seed), seed, range(resamples))


def user_hash(user: Tensor, seed: int) -> Tensor:
    """``[N]`` int64 hash of (seed, user), the part that resamples share."""
    return _mix(user * _signed(_GOLDEN) + _signed(_mix_int(seed)))


def hashed_counts(hashed: Tensor, seed: int, resamples: Sequence[int]) -> Tensor:
    """Counts ``[r, N]`` uint8 of the named resamples, from :func:`user_hash`."""
    edges = torch.tensor(EDGES, device=hashed.device)
    counts = torch.empty(len(resamples), len(hashed), dtype=torch.uint8, device=hashed.device)
    low, high = hashed & _LOW, (hashed >> 32) & _LOW
    pair, bits = -1, low
    for i, r in enumerate(resamples):
        if r // 2 != pair:
            pair = r // 2
            bits = _mix_pair(low, high, *pair_keys(seed, [pair]))
        counts[i] = torch.bucketize((bits >> (16 * (r % 2))) & 0xFFFF, edges, right=True, out_int32=True)
    return counts


def pair_keys(seed: int, pairs: Iterable[int]) -> list[int]:
    """32-bit keys of resamples 2q and 2q + 1, for each q: one hash gives the counts of both."""
    return [_mix_int(_mix_int(seed) + (q + 1) * _GOLDEN) & _LOW for q in pairs]


def _mix_pair(low: Tensor, high: Tensor, key: int) -> Tensor:
    """32 bits from both halves of a hash and a key: MurmurHash3's finaliser, the upper half put in on its way."""
    x = low ^ key
    x = ((x ^ (x >> 16)) * _FIRST) & _LOW
    x = ((x ^ (x >> 13)) + high) & _LOW
    x = (x * _SECOND) & _LOW
    return x ^ (x >> 16)


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
