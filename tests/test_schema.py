"""Schemas: bad ones are refused, good ones survive a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema, SparseFeature

SCHEMA = DataSchema(
    treatments=("none", "mail", "coupon"),
    dense=("age", "recency"),
    sparse=(SparseFeature("city", 4, vocabulary=("Bern", "Bonn", "Oslo")), SparseFeature("viewed", 9, is_list=True)),
    value_kind="binary",
    cost_kind="continuous",
    known_cost=(0.0, 0.1, None),
    value_unit="visits",
    cost_unit="dollars",
)


def test_survives_a_checkpoint_of_plain_containers(tmp_path: Path) -> None:
    torch.save(SCHEMA.to_dict(), tmp_path / "schema.pt")
    loaded = DataSchema.from_dict(torch.load(tmp_path / "schema.pt", weights_only=True))
    assert loaded == SCHEMA
    assert hash(loaded) == hash(SCHEMA)


def test_costs_are_unknown_unless_given() -> None:
    schema = DataSchema(("none", "mail", "coupon"))
    assert schema.known_cost == (None, None, None)
    assert schema.num_treatments == 3
    assert DataSchema.from_dict(schema.to_dict()) == schema


@pytest.mark.parametrize("arms", [(), ("none",)])
def test_a_trial_has_at_least_two_arms(arms: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=f"{len(arms)} treatments"):
        DataSchema(arms)


def test_one_known_cost_per_arm() -> None:
    with pytest.raises(InputError, match="known_cost has 1 entries for 2 treatments"):
        DataSchema(("none", "mail"), known_cost=(0.0,))


@pytest.mark.parametrize("rows", [1, 0, -3])
def test_a_table_has_the_unknown_row_and_another(rows: int) -> None:
    with pytest.raises(InputError, match=f"'city' has num_embeddings={rows}"):
        SparseFeature("city", rows)


def test_errors_are_one_line() -> None:
    with pytest.raises(InputError) as caught:
        raise InputError("a\nb", "c\n  d", "e")
    assert str(caught.value) == "a b; allowed: c d; fix: e"
