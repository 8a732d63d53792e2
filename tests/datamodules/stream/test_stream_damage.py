"""Files with bytes changed anywhere are refused in one line or give the same rows: no crash, no wait without end."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from streamed import assert_same_batch, module

from lightning_budget.errors import InputError


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 rows in two row groups, every kind of column, with checksums of pages."""
    rng = np.random.default_rng(0)
    n = 60
    table = pa.table(
        {
            "uid": rng.integers(0, 25, n),
            "arm": np.array(["none", "low", "high"])[np.arange(n) % 3],
            "spend": rng.exponential(3.0, n),
            "paid": rng.random(n),
            "p": np.full(n, 1 / 3),
            "age": rng.integers(18, 80, n),
            "score": rng.standard_normal(n).astype(np.float32),
            "city": np.array(["Rome", "Bonn"])[rng.integers(0, 2, n)],
            "level": rng.integers(1, 5, n),
            "viewed": pa.array([["a", "b"][: i % 3] for i in range(n)], pa.list_(pa.string())),
        }
    )
    path = tmp_path_factory.mktemp("damage") / "whole.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=30, write_page_checksum=True)
    return path


def outcome(path: Path) -> Any:
    """All that the module gives of a file, or its refusal; within seconds."""
    found: list[Any] = []

    def read() -> None:
        try:
            data = module(path)
            data.setup()
            data.schema.to_dict()
            found.append((list(data.train_dataloader()), len(data.val), len(data.test)))
        except InputError as error:
            found.append(error)
        except BaseException as error:
            found.append(repr(error))

    thread = threading.Thread(target=read, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread.start()
        thread.join(20)
    assert found, "it has not come back"
    return found[0]


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_damaged_bytes(small: Path, data: st.DataObject) -> None:
    whole = small.read_bytes()
    kind = data.draw(st.sampled_from(["bytes", "footer", "cut"]))
    damaged = bytearray(whole)
    if kind == "cut":
        damaged = damaged[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
        start = footer if kind == "footer" else 0
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(start, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = small.with_name("damaged.parquet")
    path.write_bytes(damaged)
    result = outcome(path)
    if isinstance(result, InputError):
        assert "damaged.parquet" in str(result)
        assert "\n" not in str(result)
        return
    assert not isinstance(result, str), result
    expected = outcome(small)
    assert [len(b) for b in result[0]] == [len(b) for b in expected[0]]
    for a, b in zip(result[0], expected[0], strict=True):
        assert_same_batch(a, b)
    assert result[1:] == expected[1:]
