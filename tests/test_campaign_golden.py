"""The campaign without options is the one that published results were made with, to the last bit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_budget.campaign import Campaign
from lightning_budget.table import IdList, RCTTable

SMALL = Campaign(train_rows=1_500, val_rows=700, test_rows=700, users=300, partition_rows=1_000)
DEFAULT = {
    "user": "4a93afe5a5c2",
    "dense": "460fddcbe9e0",
    "user_id": "05e10858a920",
    "city": "54bfc1c85a50",
    "tier": "f313127df4a6",
    "device": "9e0938b8f72e",
    "viewed": "4b88c5498c5b",
    "viewed_offsets": "f33d7a3980e6",
    "treatment": "3ade9ae6a5e5",
    "value": "b964235fac7c",
    "cost": "ebb48d73d017",
    "propensity": "d40ba6b9bf4a",
    "true_value": "055a68e6609b",
    "true_cost": "4b23330dc124",
}
WHOLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "later split": ("test", {}, "1fc38c7142cd"),
    "by tiers": ("val", {"uniform": False, "seed": 3}, "25541d547805"),
    "noisy": (
        "train",
        {"purchase_logit": -2.2, "spend_sigma": 0.8, "newcomers": 0.0, "users": 10**8},
        "0db59a752ac1",
    ),
    "two arms": (
        "train",
        {"face_values": (0.0, 5.0), "newcomers": 0.6, "train_days": 3, "seed": 11},
        "d02fa3b4fbb3",
    ),
}


def columns(table: RCTTable) -> Iterator[tuple[str, Tensor]]:
    for f in fields(RCTTable):
        x = getattr(table, f.name)
        if isinstance(x, Tensor):
            yield f.name, x
        elif f.name == "ids":
            for name, column in x.items():
                if isinstance(column, IdList):
                    yield from ((name, column.values), (f"{name}_offsets", column.offsets))
                else:
                    yield name, column


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=6).hexdigest()


def digests(table: RCTTable) -> dict[str, str]:
    return {name: digest(x.contiguous().numpy().tobytes()) for name, x in columns(table)}


def test_every_column_of_the_default_campaign() -> None:
    assert digests(SMALL.partition("train", 1)) == DEFAULT


@pytest.mark.parametrize("case", WHOLE)
def test_other_campaigns(case: str) -> None:
    split, arguments, expected = WHOLE[case]
    campaign = replace(SMALL, **arguments)
    found = digests(campaign.partition(split, campaign.partitions(split) - 1))
    assert digest("".join(found.values()).encode()) == expected


@pytest.mark.parametrize(
    ("named", "usual"),
    [
        ({"propensity": "uniform"}, {}),
        ({"propensity": "tiers"}, {"uniform": False}),
        ({"propensity": "tiers", "uniform": False}, {"uniform": False}),
        ({"repeat": 1, "zero_inflation": 0, "drift_base": 0, "propensity_floor": 0.1}, {}),
    ],
    ids=str,
)
def test_options_that_are_off_change_nothing(named: dict[str, Any], usual: dict[str, Any]) -> None:
    assert digests(replace(SMALL, **named).partition("val", 0)) == digests(replace(SMALL, **usual).partition("val", 0))


def test_chunks_of_rows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"zero_inflation": 0.2, "spend_tail": 3.0, "drift_base": 0.5, "propensity": "targeted"}
    campaign = replace(SMALL, **options)
    usual = dict(columns(campaign.partition("train", 0)))
    monkeypatch.setattr("lightning_budget.campaign.rows.CHUNK", 77)
    for name, x in columns(campaign.partition("train", 0)):
        assert torch.equal(x, usual[name]), name
