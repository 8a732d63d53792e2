"""A file against what was published: each check passes on the toy as published and fails on one thing changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from scipy import stats

from lightning_budget.published.checks import LEVEL, chi_square_tail
from lightning_budget.published.description import Arm, Published, PublishedFile, Rate
from lightning_budget.published.prepare import Prepared, prepare

Save = Callable[..., Path]


def check(done: Prepared) -> dict[str, bool | None]:
    return {c.name: c.passed for c in done.checks}


def checked(data: Published, path: Path, force: bool = False) -> Prepared:
    return prepare(data, path, path.with_name("out.parquet"), force)


def test_as_published(published_toy: Published, toy_table: pa.Table, save: Save, tmp_path: Path) -> None:
    done = checked(published_toy, save(toy_table))
    assert done.passed
    assert check(done) == {
        "file toy.parquet": None,
        "rows": True,
        "shares of the arms": True,
        "mean of visits": True,
        "mean of buys": True,
        "buys without visits": True,
    }
    assert done.rows == 2000
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").equals(toy_table)


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({"rows": 1999}, "rows"),
        ({"arms": (Arm("a", 0.5), Arm("b", 0.5))}, "shares of the arms"),
        ({"arms": (Arm("a", 2 / 3, 1335), Arm("b", 1 / 3, 665))}, "rows of the arms"),
        ({"rates": (Rate("visits", 0.29, 2),)}, "mean of visits"),
        ({"rates": (Rate("visits", 0.2994, 4),)}, "mean of visits"),
        ({"rates": (Rate("x", 0.9, 1, "b"),)}, "mean of x, b"),
        ({"implies": (("visits", "buys"),)}, "visits without buys"),
    ],
)
def test_one_figure_off(
    published_toy: Published, toy_table: pa.Table, save: Save, change: dict[str, object], fails: str
) -> None:
    path = save(toy_table)
    done = checked(replace(published_toy, **change), path)  # type: ignore[arg-type]
    assert [name for name, passed in check(done).items() if passed is False] == [fails]
    assert done.output is None
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert checked(replace(published_toy, **change), path, force=True).output is not None  # type: ignore[arg-type]


def test_fewer_rows_are_tested_as_a_random_sample(published_toy: Published, toy_table: pa.Table, save: Save) -> None:
    data = replace(published_toy, rates=(Rate("visits", 0.3, 3), Rate("visits", 0.3, 3, "b"), Rate("x", 0.0, 3)))
    done = checked(data, save(toy_table.take(np.random.default_rng(1).permutation(2000)[:500])))
    assert done.passed
    assert check(done)["rows"] is None
    assert "random sample" in next(c.expected for c in done.checks if c.name == "rows")
    few = checked(data, save(toy_table.slice(0, 12), "few.parquet"))
    assert check(few)["shares of the arms"] is None
    assert check(few)["mean of visits"] is None
    # The visitors alone are no random sample.
    mask = pa.array(toy_table["visits"].to_numpy() == 1)
    assert check(checked(data, save(toy_table.filter(mask), "some.parquet")))["mean of visits"] is False


def test_levels_of_samples(published_toy: Published, toy_table: pa.Table, save: Save) -> None:
    # p = 10⁻⁴ lies between these two published rates, by the normal approximation.
    rows = 1000
    sample = save(toy_table.slice(0, rows))
    mean = float(np.mean(toy_table["visits"].to_numpy()[:rows]))
    z = stats.norm.isf(LEVEL / 2)
    for factor, passed in ((0.97, True), (1.03, False)):
        rate = mean + z * factor * np.sqrt(mean * (1 - mean) / rows)
        rate += z * factor * (np.sqrt(rate * (1 - rate) / rows) - np.sqrt(mean * (1 - mean) / rows))
        done = checked(replace(published_toy, rates=(Rate("visits", rate, 9),)), sample)
        assert check(done)["mean of visits"] is passed


def test_chi_square_is_pearsons() -> None:
    for observed, expected in (([30.0, 70.0], [50.0, 50.0]), ([10.0, 20.0, 33.0, 37.0], [25.0] * 4)):
        assert chi_square_tail(observed, expected) == pytest.approx(stats.chisquare(observed, expected).pvalue)


def test_size_and_hash(published_toy: Published, toy_table: pa.Table, save: Save) -> None:
    path = save(toy_table, "toy.csv")
    raw = path.read_bytes()
    known = PublishedFile("published.csv", len(raw), hashlib.sha256(raw).hexdigest())
    data = replace(published_toy, files=(known,))
    assert check(checked(data, path))["file toy.csv"] is True
    # One digit of x changed: same size, same figures, another hash.
    path.write_bytes(raw.replace(b"0.1257", b"0.1258", 1))
    done = checked(data, path)
    assert [name for name, passed in check(done).items() if passed is False] == ["file toy.csv"]
    assert done.output is None
    # Another copy has another size; its content decides.
    path.write_bytes(raw.replace(b"\n", b"\r\n"))
    assert check(checked(data, path))["file toy.csv"] is None


def test_columns_that_were_not_published_stay_out(published_toy: Published, toy_table: pa.Table, save: Save) -> None:
    path = save(toy_table.add_column(0, "Unnamed: 0", pa.array(range(2000))), "toy.csv.gz")
    done = checked(published_toy, path)
    assert done.passed
    assert "left out, as not published: Unnamed: 0" in done.remarks
    assert pyarrow.parquet.read_schema(path.with_name("out.parquet")).names == toy_table.column_names


def test_row_groups_are_bounded(
    published_toy: Published, toy_table: pa.Table, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_budget.published.row_groups.ROW_GROUP", 300)
    monkeypatch.setattr("lightning_budget.published.source.BATCH_ROWS", 130)
    path = save(toy_table)
    checked(published_toy, path)
    with pyarrow.parquet.ParquetFile(path.with_name("out.parquet")) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
        assert file.read().equals(toy_table)
    assert groups == [300] * 6 + [200]
