"""Rows that cannot be used: counted, named, refused, or left out when asked to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_budget.errors import InputError
from lightning_budget.trial import KINDS, screen_rows

ARMS = ("none", "low", "high")
NAN, INF = float("nan"), float("inf")


def columns(n: int = 8) -> dict[str, Any]:
    return {
        "treatment": np.array([ARMS[i % 3] for i in range(n)], dtype=object),
        "value": np.ones(n),
        "propensity": np.full(n, 0.3),
        "cost": np.zeros(n),
    }


def spoilt() -> dict[str, Any]:
    c = columns()
    c["value"][[1, 5]] = NAN, INF
    c["propensity"][[2, 3]] = 0.0, 1.5
    c["treatment"][4], c["treatment"][6] = "hihg", None
    c["cost"][[5, 7]] = -1.0, -0.5
    return c


def test_sound_rows_are_kept() -> None:
    keep, rows = screen_rows(**columns(), arms=ARMS)
    assert keep.all()
    assert (rows.total, rows.kept, rows.excluded, rows.attrition_p) == (8, 8, 0, 1.0)
    assert rows.verdict().text == "all 8 rows can be used"
    assert [k.first_row for k in rows.kinds] == [None] * 5


def test_all_kinds_are_refused_in_one_error() -> None:
    with pytest.raises(InputError) as caught:
        screen_rows(**spoilt(), arms=ARMS)
    message = str(caught.value)
    for words in (
        "2 rows of 8 with missing_outcome (value or cost is null, NaN or infinite), the first is row 1",
        "1 rows of 8 with zero_propensity (propensity 0), the first is row 2",
        "1 rows of 8 with invalid_propensity (propensity null, NaN, below 0 or above 1), the first is row 3",
        "2 rows of 8 with unknown_arm (an arm that is not among the arms named, or none), the first is row 4",
        "2 rows of 8 with negative_cost (cost below 0), the first is row 5",
        "; allowed: a finite value and cost, cost ≥ 0, propensity in (0, 1] and a known arm in every row; fix: ",
        "exclude=[missing_outcome, zero_propensity, invalid_propensity, unknown_arm, negative_cost]",
    ):
        assert words in message
    assert "\n" not in message


def test_what_is_not_excluded_is_refused() -> None:
    with pytest.raises(InputError) as caught:
        screen_rows(**spoilt(), arms=ARMS, exclude=("missing_outcome", "zero_propensity", "invalid_propensity"))
    message = str(caught.value)
    assert "missing_outcome (" not in message
    assert "2 rows of 8 with unknown_arm" in message
    # Row 5 is left out already, for its outcome.
    assert "1 rows of 8 with negative_cost (cost below 0), the first is row 7" in message


def test_exclusion_by_option() -> None:
    keep, rows = screen_rows(**spoilt(), arms=ARMS, exclude=KINDS)
    assert keep.tolist() == [True] + [False] * 7
    assert {k.kind: (k.count, k.first_row) for k in rows.kinds} == {
        "missing_outcome": (2, 1),
        "zero_propensity": (1, 2),
        "invalid_propensity": (1, 3),
        "unknown_arm": (2, 4),
        "negative_cost": (2, 5),
    }
    assert (rows.kept, rows.excluded, rows.exclude) == (1, 7, KINDS)
    assert rows.kinds[0].by_arm == {"none": 0, "low": 1, "high": 1}
    state = json.loads(json.dumps(rows.to_dict(), allow_nan=False))
    assert state["kinds"][0] == {"kind": "missing_outcome", "count": 2, "first_row": 1, "by_arm": rows.kinds[0].by_arm}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_kept_rows_are_the_sound_ones(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))

    def column(*entries: float) -> list[float]:
        return data.draw(st.lists(st.sampled_from(entries), min_size=n, max_size=n))

    t, y, p, c = (
        column(0, 1, 2, -1, 3),
        column(0, 1, NAN, -INF),
        column(0.5, 1, 0, -0.1, 1.1, NAN),
        column(0, 2, -1, NAN),
    )
    exclude = tuple(data.draw(st.sets(st.sampled_from(KINDS))))
    kinds = [
        {
            "missing_outcome": not (np.isfinite(y[i]) and np.isfinite(c[i])),
            "zero_propensity": p[i] == 0,
            "invalid_propensity": not 0 <= p[i] <= 1,
            "unknown_arm": t[i] not in (0, 1, 2),
            "negative_cost": c[i] < 0,
        }
        for i in range(n)
    ]
    out = [any(kind[k] for k in exclude) for kind in kinds]
    refused = any(any(kind.values()) and not left for kind, left in zip(kinds, out, strict=True))
    given_columns: dict[str, Any] = {"treatment": np.array(t, dtype=int), "value": y, "propensity": p, "cost": c}
    if refused or all(out):
        with pytest.raises(InputError):
            screen_rows(**given_columns, arms=ARMS, exclude=exclude)
        return
    keep, rows = screen_rows(**given_columns, arms=ARMS, exclude=exclude)
    assert keep.tolist() == [not x for x in out]
    assert {k.kind: k.count for k in rows.kinds} == {k: sum(kind[k] for kind in kinds) for k in KINDS}


@pytest.mark.parametrize(
    "treatment",
    [
        torch.tensor([0, 1, 2, 7]),
        np.array([0.0, 1.0, 2.0, NAN]),
        np.array([0.0, 1.0, 2.0, 0.5]),
        np.array(["none", "low", "high", ""]),
        ["none", "low", "high", None],
    ],
)
def test_arms_of_every_type(treatment: Any) -> None:
    keep, rows = screen_rows(treatment, torch.ones(4), [0.5, 0.5, 0.5, 0.5], ARMS, exclude=("unknown_arm",))
    assert keep.tolist() == [True, True, True, False]
    assert rows.kinds[3].first_row == 3


def test_exclusions_that_depend_on_the_arm_are_a_warning() -> None:
    c = columns(6000)
    g = np.random.default_rng(0)
    high = c["treatment"] == "high"
    c["value"][g.random(6000) < np.where(high, 0.12, 0.05)] = NAN
    _, rows = screen_rows(**c, arms=ARMS, exclude=("missing_outcome",))
    lost = np.array([rows.kinds[0].by_arm[a] for a in ARMS])
    wanted = stats.chi2_contingency(np.stack([lost, 2000 - lost]), correction=False)
    assert rows.attrition_p == pytest.approx(wanted[1], rel=1e-9)
    assert not rows.verdict().ok
    assert "not of all arms alike" in rows.verdict().text
    c["value"] = np.where(g.random(6000) < 0.05, NAN, 1.0)
    assert screen_rows(**c, arms=ARMS, exclude=("missing_outcome",))[1].verdict().ok


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"exclude": ("missing",)}, "exclude=['missing']; allowed: missing_outcome, zero_propensity"),
        ({"value": np.ones(3)}, "value has shape [3]; allowed: [8], as treatment has"),
        ({"propensity": ["x"] * 8}, "propensity cannot be read as numbers"),
        ({"treatment": np.zeros((8, 2))}, "treatment has shape [8, 2]"),
        ({"value": np.full(8, NAN), "exclude": ("missing_outcome",)}, "no row is left of 8"),
    ],
)
def test_what_cannot_be_read(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        screen_rows(**{**columns(), "arms": ARMS, **change})
    assert words in str(caught.value)
