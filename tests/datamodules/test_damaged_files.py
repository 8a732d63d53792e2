"""Bytes of a sound Parquet file changed at random: one clear error or a trial, never anything else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_budget.data.columns import TableColumns
from lightning_budget.data.trial import read_trial
from lightning_budget.data.where import Where
from lightning_budget.errors import InputError

ROWS = 64
COLUMNS = TableColumns(
    treatment="arm",
    arms=("none", "low"),
    value="spend",
    cost_formula="level * paid",
    cost=None,
    levels=(0, 1),
    dense=("age",),
    categorical=("city",),
    lists=("viewed",),
    user="uid",
    weight="w",
    nulls={"age": "mean"},
)


def sound(compression: str, dictionary: bool) -> bytes:
    i = np.arange(ROWS)
    table = pa.table(
        {
            "uid": pa.array([f"user {u}" for u in i % 40]),
            "arm": np.array(["none", "low"])[i % 2],
            "spend": i * 0.25,
            "paid": (i % 3).astype(np.int32),
            "age": pa.array([None if u % 5 == 0 else int(u) for u in i], pa.int16()),
            "w": np.ones(ROWS, np.float32),
            "city": pa.array(["Rome", "Bonn", None, "Oslo"] * (ROWS // 4)),
            "viewed": pa.array([[f"c{j}" for j in range(u % 4)] for u in i]),
        }
    )
    out = io.BytesIO()
    pyarrow.parquet.write_table(table, out, compression=compression, use_dictionary=dictionary, row_group_size=24)
    return out.getvalue()


FILES = [sound(c, d) for c, d in (("snappy", True), ("none", False), ("zstd", True))]
PLACE = st.floats(0, 1, exclude_max=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged") / "trial.parquet"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(FILES),
    damage=st.lists(st.tuples(PLACE, st.integers(0, 255)), max_size=6),
    end=st.sampled_from([1.0, 1.0, 1.0, 0.99, 0.5]),
    shift=st.sampled_from([0, 0, 0, 1, 7]),
)
def test_damage_is_told(path: Path, file: bytes, damage: list[tuple[float, int]], end: float, shift: int) -> None:
    content = bytearray(file)
    for place, byte in damage:
        content[int(place * len(content))] = byte
    path.write_bytes(content[shift : int(end * len(content))])
    told, rows = str(path), 0
    try:
        rows = sum(map(len, read_trial(path, COLUMNS).splits.values()))
    except InputError as error:
        told = str(error)
    assert told.startswith(str(path))
    assert rows in (0, ROWS) or damage


def test_sound_files_are_read(path: Path) -> None:
    for file in FILES:
        path.write_bytes(file)
        assert sum(map(len, read_trial(path, COLUMNS).splits.values())) == ROWS


def test_damage_is_named_by_file_row_group_and_column(tmp_path: Path) -> None:
    content = bytearray(FILES[2])
    for name in ("a", "b"):
        (tmp_path / f"{name}.parquet").write_bytes(content)
    group = pyarrow.parquet.ParquetFile(io.BytesIO(FILES[2])).metadata.row_group(1)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "spend")
    start = min(x for x in (column.dictionary_page_offset, column.data_page_offset) if x)
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    (tmp_path / "b.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"b.parquet, row group 1, column 'spend' cannot be read: "):
        read_trial(tmp_path, COLUMNS)


def test_text_that_is_none_is_found_before_it_is_used(path: Path) -> None:
    path.write_bytes(FILES[1].replace(b"Oslo", b"\xff\xfe\xfd\xfc"))
    with pytest.raises(InputError, match=r"row group 0, column 'city' cannot be read: .*UTF8"):
        read_trial(path, COLUMNS)


def test_rows_are_named_by_file_and_row_group(tmp_path: Path) -> None:
    table = pyarrow.parquet.read_table(io.BytesIO(FILES[0]))
    bad = table.set_column(2, "spend", pa.array([float("nan") if i == 48 else 1.0 for i in range(ROWS)]))
    for name, part in (("a", table), ("b", bad)):
        pyarrow.parquet.write_table(part, tmp_path / f"{name}.parquet", row_group_size=24)
    with pytest.raises(InputError) as caught:
        read_trial(tmp_path, COLUMNS)
    where = f"the first in row 48 of {tmp_path / 'b.parquet'}, row group 2"
    assert f"column 'spend' has 1 null, NaN or infinite entries of 128, {where}" in str(caught.value)
    kept = Where(10, parts=("gone.parquet",)).kept(np.arange(6) % 2 == 1)
    assert kept.of_rows(3).tolist() == [11, 13, 15]
    assert kept.name(1) == "row 13"
