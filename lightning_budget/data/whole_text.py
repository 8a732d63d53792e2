"""Which texts are whole numbers: decided for each text alone, so that a label is the same in any piece of a file."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

WHOLE = r"^(0|-?[1-9][0-9]{0,19})$"
"""Decimal text of a whole number, spelt as numbers are printed; no other digits than ASCII's."""


def wholes_among(texts: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Where the whole numbers of 64 bits are, with or without a sign, and these modulo 2⁶⁴.

    Args:
        texts: ``[N]`` text or binary without nulls, with 64-bit offsets.

    Returns:
        ``[n]`` positions, and ``[n]`` numbers.
    """
    options = pc.MatchSubstringOptions(WHOLE)
    place = np.flatnonzero(pc.call_function("match_substring_regex", [texts], options).to_numpy(zero_copy_only=False))
    found = texts if len(place) == len(texts) else texts.take(pa.array(place))
    values, fits = np.zeros(len(place), np.uint64), np.ones(len(place), bool)
    # Any number of 18 characters fits 64 bits.
    short = pc.call_function("binary_length", [found]).to_numpy() <= 18
    if short.any():
        numbers = (found if short.all() else found.filter(pa.array(short))).cast(pa.large_string()).cast(pa.int64())
        values[short] = numbers.to_numpy().view(np.uint64)
    long = np.flatnonzero(~short)
    for i, text in zip(long.tolist(), found.take(pa.array(long)).to_pylist(), strict=True):
        number = int(text)
        fits[i] = -(2**63) <= number < 2**64
        values[i] = number % 2**64
    return place[fits], values[fits]
