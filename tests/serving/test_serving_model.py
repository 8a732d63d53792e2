"""The serving model is the training model: on ragged users, no users, unknown ids and every kind of outcome."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from serving_cases import SIZES, batch, case

from lightning_budget.allocation import PricePolicy, policy_treatment
from lightning_budget.batch import RCTBatch
from lightning_budget.errors import InputError
from lightning_budget.models.tarnet import TARNet
from lightning_budget.serving import ServingModel
from lightning_budget.training.serving_export import serving_inputs

KINDS = [
    {},
    {"value_kind": "binary"},
    {"value_kind": "binary", "cost_kind": "binary"},
    {"known_cost": (0.0, None, 2.5)},
]


@torch.no_grad()
def assert_same_predictions(model: TARNet, serving: ServingModel, users: RCTBatch) -> None:
    got = serving(*serving_inputs(users))
    if len(users) == 0:
        # TorchRec cannot look up for nobody.
        assert got.value.shape == got.cost.shape == (0, 3)
        return
    wanted = model(users.dense, users.sparse)
    torch.testing.assert_close(got.value, wanted.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.cost, wanted.cost, rtol=1e-6, atol=1e-6)
    assert got.treatment is None


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("rows", SIZES)
def test_predictions_are_those_of_the_training_model(rows: int, kinds: dict[str, Any]) -> None:
    model, serving = case(rows, **kinds)
    users = batch(rows, seed=rows)
    users.dense[:1, 0] = 1e4  # beyond where features are clipped
    assert_same_predictions(model, serving, users)


@pytest.mark.parametrize("rows", SIZES)
def test_users_without_any_listed_id(rows: int) -> None:
    model, serving = case()
    users = batch(rows, lists=False)
    assert_same_predictions(model, serving, users)
    _, values, offsets = serving_inputs(users)
    assert len(values[1]) == 0
    assert torch.equal(serving.tables[1](values[1], offsets[1]), torch.zeros(rows, 4))


@pytest.mark.parametrize("without", ["dense", "sparse"])
def test_one_kind_of_feature(without: str) -> None:
    model, serving = case(**{without: ()})
    users = batch(9)
    dense = users.dense[:, :0] if without == "dense" else users.dense
    sparse = None if without == "sparse" else users.sparse
    _, values, offsets = serving_inputs(users)
    with torch.no_grad():
        wanted = model(dense, sparse)
    got = serving(dense, values, offsets) if without == "dense" else serving(dense, [], [])
    torch.testing.assert_close(got.value, wanted.value, rtol=1e-6, atol=1e-6)
    assert got.value.std(0).max() > 1e-3


def test_inputs_are_the_users_own_ids() -> None:
    users = batch(5, seed=3)
    assert users.sparse is not None
    _, values, offsets = serving_inputs(users)
    for key, v, o in zip(users.sparse.keys(), values, offsets, strict=True):
        assert torch.equal(v, users.sparse[key].values())
        assert torch.equal(o, users.sparse[key].offsets())


@pytest.mark.parametrize("strange", [-1, -(2**40), 50, 2**40])
def test_rows_that_the_table_has_not_are_unknown(strange: int) -> None:
    _, serving = case()
    dense, values, offsets = serving_inputs(batch(4))
    for model in (serving, serving.int8()):
        for feature in (0, 1):
            known, odd = [v.clone() for v in values], [v.clone() for v in values]
            known[feature][1], odd[feature][1] = 0, strange
            assert torch.equal(model(dense, odd, offsets).value, model(dense, known, offsets).value)
            other = [v.clone() for v in values]
            other[feature][1] = 5
            assert not torch.equal(model(dense, other, offsets).value, model(dense, known, offsets).value)


def test_the_policy_travels_along() -> None:
    _, serving = case(multiplier=0.7)
    inputs = serving_inputs(batch(200))
    out = serving(*inputs)
    assert serving.policy == PricePolicy(0.7, ("arm_0", "arm_1", "arm_2"))
    assert torch.equal(out.treatment, PricePolicy(0.7)(out.value, out.cost))
    assert out.treatment.unique().tolist() == [0, 1, 2]
    other = serving(*inputs, torch.tensor(3.0))
    assert torch.equal(other.treatment, policy_treatment(out.value, out.cost, 3.0))
    assert not torch.equal(other.treatment, out.treatment)
    assert case()[1].policy is None


def test_no_weight_is_copied_and_none_learns() -> None:
    model, serving = case()
    assert model.sparse_arch is not None
    table = model.sparse_arch.tables.embedding_bags["viewed"].weight
    assert serving.tables[1].weight.data_ptr() == table.data_ptr()  # type: ignore[union-attr]
    assert serving.net.trunk[0].weight.data_ptr() == model.trunk[0].weight.data_ptr()  # type: ignore[union-attr]
    assert not any(p.requires_grad for p in serving.parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert not serving(*serving_inputs(batch(2))).value.requires_grad


def test_a_missing_feature_is_named() -> None:
    _, serving = case()
    dense, values, offsets = serving_inputs(batch(2))
    with pytest.raises(InputError, match="1 values and 2 offsets; allowed: 2 each: user_id, viewed; fix: "):
        serving(dense, values[:1], offsets)
