"""A job from files to files gives what the same users in memory give, to the last bit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from streams import Small, arms, contents, expected_arms, run

from lightning_budget.streaming import job
from lightning_budget.streaming.source import open_source
from lightning_budget.streaming.threads import for_each

pytestmark = pytest.mark.usefixtures("little")


@pytest.mark.parametrize("share", [1e-3, 0.3, 1.0, 5.0])
@pytest.mark.parametrize("kind", ["single", "double", "ties"])
def test_equals_memory(kind: str, share: float, tmp_path: Path) -> None:
    dtype = torch.float64 if kind == "double" else torch.float32
    users = Small.draw(6000, 4, dtype, grid=kind == "ties")
    budget = share / 0.3 * users.budget
    result = run(users.write(tmp_path / "in", 5), tmp_path / "out", budget)
    assert arms(tmp_path / "out") == expected_arms(users, budget)
    expected = users.in_memory(budget)
    assert result.certificate == expected.certificate()
    assert result.counts == torch.bincount(expected.assignment.long(), minlength=4).tolist()


def test_partitioning_row_groups_and_order_do_not_matter(users: Small, tmp_path: Path) -> None:
    expected, certificate = expected_arms(users), users.in_memory().certificate()
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(1))
    for parts, group, given in ((1, 10**6, users), (1, 64, users), (7, 900, users), (3, 100, users.select(order))):
        place = tmp_path / f"{parts}-{group}"
        result = run(given.write(place / "in", parts, group), place / "out", users.budget)
        assert arms(place / "out") == expected
        assert result.certificate == certificate


def test_output_is_partitioned_as_the_input(users: Small, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = run(folder, output, users.budget, treatments=["none", "a", "b", "c"])
    assert sorted(p.relative_to(output) for p in output.rglob("*.parquet")) == sorted(
        p.relative_to(folder) for p in folder.rglob("*.parquet")
    )
    for path in folder.rglob("*.parquet"):
        # Read as files, so that folders' names add no column.
        given = pyarrow.parquet.ParquetFile(path).read()
        made = pyarrow.parquet.ParquetFile(output / path.relative_to(folder)).read()
        assert made["user_id"].to_pylist() == given["user_id"].to_pylist()
        treatment = made["treatment"].to_numpy()
        assert made["treatment_name"].to_pylist() == [["none", "a", "b", "c"][t] for t in treatment]
        for part in ("value", "cost"):
            matrix = np.stack([given[f"{part}_{j}"].to_numpy() for j in range(4)], 1)
            chosen = np.take_along_axis(matrix, treatment[:, None], 1)[:, 0]
            assert made[part].type == pa.float32()
            assert np.array_equal(made[part].to_numpy(), chosen)
        assert json.loads(made.schema.metadata[b"certificate"]) == result.certificate
    assert json.loads((output / "_certificate.json").read_text()) == result.certificate
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}


def test_a_single_file_gives_a_single_file(users: Small, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(users.table(), tmp_path / "in.parquet", row_group_size=500)
    run(tmp_path / "in.parquet", tmp_path / "new" / "out.parquet", users.budget)
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "out.parquet"]
    assert arms(tmp_path / "new" / "out.parquet") == expected_arms(users)


def test_an_earlier_output_is_replaced_whole(users: Small, folder: Path, tmp_path: Path) -> None:
    run(users.write(tmp_path / "other", 1), tmp_path / "out", users.budget)
    run(folder, tmp_path / "out", users.budget)
    assert len(list((tmp_path / "out").rglob("*.parquet"))) == 5


@pytest.mark.parametrize("fixed", [True, False])
def test_lists_and_other_names(users: Small, tmp_path: Path, fixed: bool) -> None:
    def lists(x: torch.Tensor) -> pa.Array:
        return pa.array(list(x.numpy()), pa.list_(pa.float32(), 4) if fixed else pa.list_(pa.float32()))

    table = pa.table({"v": lists(users.value), "user_id": users.ids.numpy(), "c": lists(users.cost)})
    (tmp_path / "in").mkdir()
    pyarrow.parquet.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=700)
    run(tmp_path / "in", tmp_path / "out", users.budget, value_columns="v", cost_columns=["c"])
    assert arms(tmp_path / "out") == expected_arms(users)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_text_ids_break_ties_alike_in_any_order(kind: pa.DataType, tmp_path: Path) -> None:
    users = Small.draw(3000, 3, grid=True)
    names = [f"user {i:x} of {'a long name' if i % 3 else 'é'}" for i in users.ids.tolist()]
    tables = [users.table(pa.array(names).cast(kind))]
    shuffle = torch.randperm(3000).tolist()
    tables.append(tables[0].take(shuffle))
    found = []
    for i, table in enumerate(tables):
        pyarrow.parquet.write_table(table, tmp_path / f"in{i}.parquet", row_group_size=200 + 300 * i)
        run(tmp_path / f"in{i}.parquet", tmp_path / f"out{i}.parquet", users.budget)
        found.append(arms(tmp_path / f"out{i}.parquet"))
    assert found[0] == found[1]
    assert found[0].keys() == set(names)
    assert pyarrow.parquet.read_schema(tmp_path / "out0.parquet").field("user_id").type == kind


def test_a_bracket_that_misses_is_moved(
    users: Small, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = users.in_memory().multiplier
    for low, high in ((2.0, 3.0), (0.1, 0.5), (1.0001, 1.1), (0.9, 0.9999)):
        monkeypatch.setattr(job, "bracket_of", lambda *_, ends=(low * true, high * true): ends)
        output = tmp_path / f"{low}"
        result = run(folder, output, users.budget)
        assert result.passes > 1
        assert arms(output) == expected_arms(users)


def test_a_sample_leaves_few_open_and_one_pass(users: Small, folder: Path, tmp_path: Path) -> None:
    assert run(folder, tmp_path / "out", users.budget).passes == 1


def test_runs_give_the_same_bytes(users: Small, folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a", users.budget)
    run(folder, tmp_path / "b", users.budget, threads=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_of_threads_that_fail_the_first_thing_tells() -> None:
    begun: list[int] = []

    def work(thing: int) -> None:
        begun.append(thing)
        if thing in (1, 2):
            raise ValueError(thing)
        time.sleep(0.01)

    for threads in (1, 3):
        begun.clear()
        with pytest.raises(ValueError, match="1"):
            for_each(range(100), work, threads)
        assert len(begun) < 20


def test_pieces_are_neighbouring_row_groups(folder: Path) -> None:
    source = open_source(folder)
    seen: dict[int, int] = {}
    for piece in source.pieces:
        assert piece.first_row == seen.get(piece.file, 0)
        assert piece.rows <= 700 + 300
        seen[piece.file] = piece.first_row + piece.rows
    assert seen == {i: f.rows for i, f in enumerate(source.files) if f.rows}
    assert source.rows == 6000
