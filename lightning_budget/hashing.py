"""Random numbers that are a function of an id: the same in any order, partition or process."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash_ids(ids: NDArray[np.integer], seed: int, purpose: str) -> NDArray[np.uint64]:
    """SplitMix64 finaliser of ``id + key(seed, purpose)``.

    Args:
        ids: any shape, integers.
        seed, purpose: name an independent stream.

    Returns:
        uint64 of the same shape.

    Source: Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195.
    """
    x = ids.astype(np.uint64) * np.uint64(GOLDEN) + key_of(seed, purpose)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(FIRST)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(SECOND)
    return x ^ (x >> np.uint64(31))


def unhash_ids(hashes: NDArray[np.uint64], seed: int, purpose: str) -> NDArray[np.uint64]:
    """Inverse of :func:`hash_ids`, which is a bijection of 64 bits; negative ids come back modulo 2⁶⁴."""
    x = _unshifted(hashes, 31) * np.uint64(pow(SECOND, -1, 2**64))
    x = _unshifted(x, 27) * np.uint64(pow(FIRST, -1, 2**64))
    return (_unshifted(x, 30) - key_of(seed, purpose)) * np.uint64(pow(GOLDEN, -1, 2**64))


def key_of(seed: int, purpose: str) -> np.uint64:
    """What tells one stream of hashes from another."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _unshifted(x: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """``y`` with ``y ^ (y >> bits) == x``, for shifts of 22 to 31."""
    return x ^ (x >> np.uint64(bits)) ^ (x >> np.uint64(2 * bits))


def hashed_uniform(ids: NDArray[np.integer], seed: int, purpose: str) -> NDArray[np.float64]:
    """Uniform draws in (0, 1), one per id."""
    return ((hash_ids(ids, seed, purpose) >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53


def hashed_normal(ids: NDArray[np.integer], seed: int, purpose: str) -> NDArray[np.float64]:
    """Standard normal draws, one per id (Box–Muller on two streams)."""
    radius = np.sqrt(-2 * np.log(hashed_uniform(ids, seed, purpose + "/radius")))
    return radius * np.cos(2 * np.pi * hashed_uniform(ids, seed, purpose + "/angle"))
