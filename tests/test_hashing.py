"""Hashed draws follow their distribution and depend on id, seed and purpose alone."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_budget.hashing import hash_ids, hashed_normal, hashed_uniform

N = 100_000
IDS = np.arange(N)
# Ids are rarely consecutive: strides, high bits and far offsets must scatter as well.
PATTERNS = {
    "consecutive": IDS,
    "even": IDS * 2,
    "powers of two apart": IDS * 4096,
    "far": IDS + 10**15,
    "high bits": IDS << 40,
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_uniform_and_normal(pattern: str, seed: int) -> None:
    ids = PATTERNS[pattern]
    uniform, normal = hashed_uniform(ids, seed, "a"), hashed_normal(ids, seed, "a")
    assert uniform.min() > 0
    assert uniform.max() < 1
    # 30 tests of fixed draws: a sound generator fails one of them with probability 0.003.
    assert stats.kstest(uniform, "uniform").pvalue > 1e-4
    assert stats.kstest(normal, "norm").pvalue > 1e-4


def test_tails_of_the_normal() -> None:
    x = hashed_normal(np.arange(1_000_000), 3, "tails")
    assert np.isfinite(x).all()
    for bound in (3.0, 4.0):
        expected = len(x) * 2 * stats.norm.sf(bound)
        assert (np.abs(x) > bound).sum() == pytest.approx(expected, abs=4 * expected**0.5)


def test_every_bit_is_fair() -> None:
    bits = np.unpackbits(hash_ids(IDS, 0, "bits").view(np.uint8).reshape(N, 8), axis=1)
    z = (bits.mean(0) - 0.5) * 2 * N**0.5
    assert np.abs(z).max() < 4.5


@given(order=st.permutations(range(30)), cut=st.integers(0, 30))
def test_a_draw_is_that_of_its_id_in_any_order_and_partition(order: list[int], cut: int) -> None:
    ids = np.asarray(order)
    whole = hashed_normal(np.arange(30), 5, "trait")
    parts = np.concatenate([hashed_normal(ids[:cut], 5, "trait"), hashed_normal(ids[cut:], 5, "trait")])
    np.testing.assert_array_equal(parts, whole[ids])


def test_shape_and_integer_type_do_not_matter() -> None:
    ids = np.arange(12).reshape(3, 4)
    expected = hash_ids(ids.ravel(), 0, "a").reshape(3, 4)
    assert expected.dtype == np.uint64
    for kind in (np.int32, np.int64, np.uint64):
        np.testing.assert_array_equal(hash_ids(ids.astype(kind), 0, "a"), expected)


def test_purposes_seeds_and_neighbours_are_uncorrelated() -> None:
    streams = [
        hashed_normal(IDS, 0, "a"),
        hashed_normal(IDS, 0, "b"),
        hashed_normal(IDS, 1, "a"),
        hashed_normal(IDS, 0, "a/radius"),
        hashed_normal(IDS, 0, "a/angle"),
        hashed_normal(IDS + 1, 0, "a"),
        hashed_normal(IDS * 2, 0, "a"),
    ]
    for transform in (lambda x: x, np.square):
        z = np.corrcoef([transform(s) for s in streams])[np.triu_indices(len(streams), 1)] * N**0.5
        assert np.abs(z).max() < 4.5


def test_distinct_ids_do_not_collide() -> None:
    assert len(np.unique(hash_ids(np.arange(1_000_000), 0, "a"))) == 1_000_000


def split_mix(id: int, seed: int, purpose: str) -> int:
    """SplitMix64 in unbounded integers."""
    mask = 2**64 - 1
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")
    x = (id * 0x9E3779B97F4A7C15 + key) & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return x ^ x >> 31


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), seed=st.integers(), purpose=st.text())
def test_equals_integer_arithmetic(ids: list[int], seed: int, purpose: str) -> None:
    assert hash_ids(np.array(ids), seed, purpose).tolist() == [split_mix(i, seed, purpose) for i in ids]


def test_the_stream_is_fixed() -> None:
    # A change of these numbers changes every campaign and every split.
    expected = [16700458886350931672, 13805407846978171068, 2029493663742942176]
    assert hash_ids(np.array([0, 1, -1]), 0, "a").tolist() == expected
