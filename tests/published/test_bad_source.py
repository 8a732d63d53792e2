"""A file that cannot be read as the data set is refused in one line that names file, column and row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_budget.errors import InputError
from lightning_budget.published.description import Published, PublishedFile
from lightning_budget.published.prepare import prepare
from lightning_budget.published.source import chunks, locate

Save = Callable[..., Path]
FORMATS = ["toy.csv", "toy.csv.gz", "toy.parquet"]


def refused(toy: Published, path: Path, *parts: str) -> str:
    """The one line, which has all the parts; nothing was written."""
    output = path.with_name("out.parquet")
    with pytest.raises(InputError) as caught:
        prepare(toy, path, output)
    line = str(caught.value)
    assert "\n" not in line
    for part in ("; allowed: ", "; fix: ", *parts):
        assert part in line
    before = {path.name, "toy.csv"}
    assert {p.name for p in path.parent.iterdir()} <= before
    return line


def with_entry(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    """The table with one entry replaced, its column in the type that this takes."""
    entries = table[column].to_pylist()
    entries[row] = value
    return table.set_column(table.schema.get_field_index(column), column, pa.array(entries))


@pytest.mark.parametrize("name", FORMATS)
def test_missing_and_misspelt_columns(toy: Published, toy_table: pa.Table, save: Save, name: str) -> None:
    path = save(toy_table.rename_columns(["x", "n", "citty", "arm", "buys", "visits"]), name)
    refused(toy, path, name, "lacks column 'city'", "rename 'citty'")
    refused(toy, save(toy_table.drop_columns(["x", "visits"]), name), "lacks column 'x' and 1 more", "the shop")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("buys", 2, "column 'buys' has 2 in row 1500"),
        ("buys", 0.5, "column 'buys' has 0.5 in row 1500"),
        ("buys", -1, "column 'buys' has -1 in row 1500"),
        ("n", 40_000, "column 'n' has 40000 in row 1500"),
        ("x", None, "column 'x' has no entry in row 1500"),
        ("x", float("inf"), "column 'x' has inf in row 1500"),
        ("arm", "c", "column 'arm' has the unknown arm 'c' in row 1500"),
    ],
)
def test_entries(
    toy: Published, toy_table: pa.Table, save: Save, name: str, column: str, value: object, told: str
) -> None:
    line = refused(toy, save(with_entry(toy_table, column, 1500, value), name), name, told)
    assert ("row group 2" in line) == (name.endswith("parquet") and column != "arm")


@pytest.mark.parametrize("name", FORMATS[:2])
def test_text_for_numbers_names_column_and_line(toy: Published, toy_table: pa.Table, save: Save, name: str) -> None:
    text = [f"{v}" for v in toy_table["x"].to_pylist()]
    text[7] = "much"
    table = toy_table.set_column(0, "x", pa.array(text))
    refused(toy, save(table, name), name, "column 'x' has the entry 'much'", "finite numbers")


def test_types_of_parquet(toy: Published, toy_table: pa.Table, save: Save) -> None:
    refused(toy, save(toy_table.set_column(0, "x", toy_table["city"])), "column 'x' has type", "finite numbers")
    refused(toy, save(toy_table.set_column(2, "city", toy_table["x"])), "column 'city' has type double", "text")
    lists = pa.array([[1.0]] * len(toy_table))
    refused(toy, save(toy_table.set_column(0, "x", lists)), "column 'x' has type list")


def test_other_types_of_the_same_entries_are_taken(toy: Published, toy_table: pa.Table, save: Save) -> None:
    table = toy_table.set_column(4, "buys", pc.call_function("equal", [toy_table["buys"], pa.scalar(1, pa.int8())]))
    table = table.set_column(1, "n", toy_table["n"].cast(pa.float64()))
    table = table.set_column(3, "arm", toy_table["arm"].dictionary_encode())
    path = save(table)
    done = prepare(toy, path, path.with_name("out.parquet"))
    assert done.passed
    assert pyarrow.parquet.read_table(path.with_name("out.parquet")).equals(toy_table)


def test_files_that_are_not_there_or_not_whole(toy: Published, toy_table: pa.Table, save: Save, tmp_path: Path) -> None:
    toy = replace(toy, files=(PublishedFile("toy.csv"),))
    refused(toy, tmp_path / "no.csv", "no such file", "get it from the shop")
    for name in FORMATS:
        whole = save(toy_table, name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        if name != "toy.csv":  # half a csv file is a csv file
            refused(toy, tmp_path / name, name, "cannot be read", "whole")
        (tmp_path / name).write_bytes(b"")
        refused(toy, tmp_path / name, name)
        save(toy_table.slice(0, 0), name)
        refused(toy, tmp_path / name, "has no rows")
        (tmp_path / name).unlink()
    (tmp_path / "toy.csv.gz").write_bytes(b"x,n\n1,2\n")
    refused(toy, tmp_path / "toy.csv.gz", "cannot be read")
    (tmp_path / "toy.csv.gz").unlink()
    (tmp_path / "toy.zip").write_bytes(b"PK")
    refused(toy, tmp_path / "toy.zip", "suffix '.zip'")


def test_a_folder_where_a_file_is_meant_and_the_other_way(toy: Published, toy_table: pa.Table, save: Save) -> None:
    path = save(toy_table, "train.csv")
    one = replace(toy, files=(PublishedFile("toy.csv"),))
    with pytest.raises(InputError, match=r"is a folder.*--from .*toy\.csv"):
        locate(one, path.parent)
    two = replace(toy, files=(PublishedFile("train.csv", part="train"), PublishedFile("test.csv", part="test")))
    with pytest.raises(InputError, match=r"is one file.*a folder with train\.csv and test\.csv"):
        locate(two, path)
    with pytest.raises(InputError, match=r"has no test\.csv"):
        locate(two, path.parent)
    save(toy_table, "test.csv.gz")
    assert [s.part for s in locate(two, path.parent)] == ["train", "test"]
    save(toy_table, "test.parquet")
    with pytest.raises(InputError, match=r"has test\.csv\.gz and test\.parquet"):
        locate(two, path.parent)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FORMATS[1:]), at=st.floats(0, 1), noise=st.binary(min_size=1, max_size=6))
def test_damaged_bytes_are_refused_or_read(
    toy: Published, toy_table: pa.Table, tmp_path: Path, name: str, at: float, noise: bytes
) -> None:
    from tests.published.conftest import write

    path = tmp_path / name
    whole = write(toy_table.slice(0, 60), path).read_bytes()
    i = int(at * (len(whole) - 1))
    path.write_bytes(whole[:i] + noise + whole[i + len(noise) :])
    line, rows = "", 0
    try:
        (source,) = locate(toy, path)
        rows = sum(len(chunk.table) for chunk in chunks(toy, source, lambda done: None))
    except InputError as error:
        line = str(error)
    assert (rows > 0) != (name in line)
    assert "\n" not in line


def test_an_output_that_cannot_be_written(toy: Published, toy_table: pa.Table, save: Save, tmp_path: Path) -> None:
    path = save(toy_table)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"out\.parquet cannot be made"):
        prepare(toy, path, tmp_path / "file" / "out.parquet")
    (tmp_path / "out.parquet").mkdir()
    with pytest.raises(InputError, match=r"out\.parquet cannot be made"):
        prepare(toy, path, tmp_path / "out.parquet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "out.parquet", "toy.parquet"]
