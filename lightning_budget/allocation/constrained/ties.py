"""Numbers that belong to a user's key and not to the row: an order for ties and samples that no sorting changes."""

from __future__ import annotations

from torch import Tensor


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


_GOLDEN, _FIRST, _SECOND = (_signed(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def hash_keys(key: Tensor, stream: int = 0) -> Tensor:
    """SplitMix64 of int64 keys: int64 of the same shape, a bijection for each stream.

    Args:
        key: any shape, int64.
        stream: names an independent function.

    Source:
        Steele, Lea, Flood 2014, doi:10.1145/2660193.2660195.
    """
    x = key * _GOLDEN + _signed((stream + 1) * 0xD1342543DE82EF95 % (1 << 64))
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def hashed_unit(key: Tensor, stream: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), float64, a function of key and stream."""
    return _shifted(hash_keys(key, stream), 11).double() * 2.0**-53


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; torch's own copies the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
