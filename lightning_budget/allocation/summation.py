"""Sums over users that do not depend on their order: pairwise two-sum, closed by ``math.fsum``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CHUNK = 1 << 17
_LEAVES = 512


def exact_parts(x: Tensor) -> list[float]:
    r"""A few floats whose exact sum is that of ``x``, to about 2⁻¹⁰⁵ of :math:`\sum |x|`.

    Parts of several tensors concatenate, so that ``math.fsum`` over all of them rounds only once.

    Args:
        x: any shape, floating.

    Source:
        Knuth's two-sum on a binary tree; Ogita, Rump, Oishi 2005, doi:10.1137/030601818.
    """
    parts: list[float] = []
    for high in x.detach().reshape(-1).split(_CHUNK):
        high = high.to(torch.float64)
        low = torch.zeros_like(high)
        while (n := high.numel()) > _LEAVES:
            half, odd = n // 2, n % 2
            a, b = high[:half], high[half : 2 * half]
            total = a + b
            b_seen = total - a
            error = (a - (total - b_seen)) + (b - b_seen)
            low_total = low[:half] + low[half : 2 * half] + error
            high = torch.cat([total, high[n - odd :]]) if odd else total
            low = torch.cat([low_total, low[n - odd :]]) if odd else low_total
        parts += torch.cat([high, low]).tolist()
    return parts


def split_parts(x: Tensor, bound: float) -> list[float]:
    """Two floats whose exact sum is that of ``x [n]``, to about 2⁻⁸⁵ of n · ``bound``, whatever the order.

    Each number is cut at one bit for all, so that neither half rounds when it is added up.

    Args:
        bound: at least the largest size of an entry.

    Source:
        Rump, Ogita, Oishi 2008, doi:10.1137/050645671 (ExtractVector).
    """
    if bound == 0 or not math.isfinite(bound) or not x.numel():
        return []
    anchor = math.ldexp(1.5, min(math.frexp(bound)[1] + x.numel().bit_length() + 2, 1020))
    double = x.double()
    high = (double + anchor).sub_(anchor)
    return [float(high.sum()), float((double - high).sum())]


def exact_sum(x: Tensor) -> float:
    """The sum of ``x`` in float64, the same for every order of its entries; see :func:`exact_parts`."""
    return math.fsum(exact_parts(x))
