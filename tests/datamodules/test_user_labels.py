"""Who a label names: a function of the label alone, whatever other labels are read with it."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_budget.data.column import Column, stable_hash

ODD = ["abc", "017", "-0", "+1", "1.0", " 17", "17\n", "1_000", "٣", "²", "-", "1" * 21, str(2**64), str(-(2**63) - 1)]
WHOLE = [0, 17, -17, 10**17, 10**18, 2**63 - 1, -(2**63), 2**63, 2**64 - 1]
LABEL = st.one_of(st.sampled_from(ODD), st.integers(-(2**63), 2**64 - 1).map(str), st.text("0123456789-", min_size=1))


def users(data: pa.Array | pa.ChunkedArray) -> list[int]:
    return Column("f.parquet", "uid", data).users().tolist()


def one(label: str) -> int:
    """As the docstring has it, in plain Python."""
    whole = label.isascii() and label.removeprefix("-").isdecimal() and str(int(label)) == label
    if whole and -(2**63) <= int(label) < 2**64:
        return (int(label) + 2**63) % 2**64 - 2**63
    return stable_hash(label) >> 1


@given(st.lists(LABEL, min_size=1, max_size=12))
def test_each_label_by_itself(labels: list[str]) -> None:
    expected = [one(label) for label in labels]
    assert users(pa.array(labels)) == expected
    assert users(pa.array(labels).dictionary_encode()) == expected
    assert users(pa.chunked_array([labels[:3], labels[3:]], pa.large_string())) == expected
    assert [u for label in labels for u in users(pa.array([label]))] == expected


@pytest.mark.parametrize("kind", [pa.int64(), pa.uint64()])
def test_a_number_and_its_text_are_one_user(kind: pa.DataType) -> None:
    numbers = [x for x in WHOLE if (x >= 0 if kind == pa.uint64() else x < 2**63)]
    expected = users(pa.array(numbers, kind))
    assert expected[:2] == [0, 17]
    assert users(pa.array([str(x) for x in numbers])) == expected
    assert users(pa.array([*map(str, numbers), *ODD]))[: len(numbers)] == expected


def test_other_spellings_are_other_users() -> None:
    found = users(pa.array([*ODD, "17", "1", "1000"]))
    assert len(set(found)) == len(found)
    assert min(found[: len(ODD)]) >= 0
