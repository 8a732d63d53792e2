"""Rows that cannot be used are refused, or left out and counted where that is asked for; never used in silence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from datamodules import TableRCTDataModule
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.trial import read_trial
from lightning_budget.errors import InputError
from lightning_budget.trial.rows import KINDS

Save = Callable[..., Path]
BAD = {"spend": (3, None), "paid": (10, -1.0), "p": (17, 0.0), "arm": (30, "medium")}
KIND = {"spend": "missing_outcome", "paid": "negative_cost", "p": "zero_propensity", "arm": "unknown_arm"}


def spoil(table: pa.Table, *names: str) -> pa.Table:
    for name in names:
        row, bad = BAD[name]
        values = table[name].to_pylist()
        values[row] = bad
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table


def settings(columns: TableColumns) -> dict[str, object]:
    return {name: getattr(columns, name) for name in columns.__dataclass_fields__}


@pytest.mark.parametrize("name", BAD)
def test_refused_unless_asked(name: str, trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(spoil(trial, name))
    with pytest.raises(InputError):
        read_trial(path, columns)
    others = [kind for kind in KINDS if kind != KIND[name]]
    with pytest.raises(InputError, match=rf"{path.name}: 1 rows of 600 with {KIND[name]}.*first is row {BAD[name][0]}"):
        read_trial(path, columns, exclude=others)  # type: ignore[arg-type]


def test_what_is_left_out_is_counted_and_the_rest_stays_as_it_was(
    trial: pa.Table, columns: TableColumns, save: Save
) -> None:
    whole = read_trial(save(trial), columns, split=(1, 0, 0)).splits["train"]
    found = read_trial(save(spoil(trial, *BAD), "bad.parquet"), columns, split=(1, 0, 0), exclude=KINDS)
    assert found.rows is not None
    assert {k.kind: k.count for k in found.rows.kinds if k.count} == {kind: 1 for kind in KIND.values()}
    assert (found.rows.total, found.rows.kept) == (600, 596)
    left = torch.from_numpy(np.setdiff1d(np.arange(600), [row for row, _ in BAD.values()]))
    for name in ("user", "dense", "treatment", "value", "cost", "propensity"):
        assert torch.equal(getattr(found.splits["train"], name), getattr(whole, name)[left]), name
    assert read_trial(save(trial), columns).rows is None


def test_a_row_without_a_user_column_keeps_its_number(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = save(spoil(trial, "spend"))
    found = read_trial(path, replace(columns, user=None), split=(1, 0, 0), exclude=["missing_outcome"])
    assert found.splits["train"].user.tolist() == [i for i in range(600) if i != 3]


def test_costs_known_beforehand_are_not_missed(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    arm = trial["arm"].to_pylist()
    paid = pa.array([None if a == "none" else x for a, x in zip(arm, trial["paid"].to_pylist(), strict=True)])
    path = save(trial.set_column(trial.schema.get_field_index("paid"), "paid", paid))
    none = arm.count("none")
    found = read_trial(path, columns, exclude=["missing_outcome"])
    assert found.rows is not None
    assert found.rows.excluded == none
    only = read_trial(path, replace(columns, cost=None, cost_per_arm=(0.0, 1.0, 2.5)), exclude=["missing_outcome"])
    assert only.rows is not None
    assert only.rows.excluded == 0


def test_by_the_data_module(trial: pa.Table, columns: TableColumns, save: Save) -> None:
    path = str(save(spoil(trial, "paid")))
    data = TableRCTDataModule(path, **settings(columns), exclude=["negative_cost"])  # type: ignore[arg-type]
    data.setup()
    assert data.screened is not None
    assert data.screened.excluded == 1
    with pytest.raises(InputError, match=r"exclude=\['negative'\].*allowed: missing_outcome"):
        TableRCTDataModule(path, **settings(columns), exclude=["negative"]).setup()  # type: ignore[arg-type]
