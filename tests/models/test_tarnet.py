"""TARNet: where it starts, what reaches its tables, and that users do not see each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from learner_cases import encoded
from random_trials import random_batch, random_schema, random_statistics, random_table
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_budget.batch import RCTBatch, ResponsePrediction
from lightning_budget.errors import InputError
from lightning_budget.models.registry import build_model
from lightning_budget.models.tarnet import TARNet
from lightning_budget.schema import DataSchema

SIZES = {"embedding_dim": 3, "dense_hidden": [8], "trunk_hidden": [16, 12], "head_hidden": 4}


def build(schema: DataSchema, seed: int = 0, **changes: object) -> TARNet:
    torch.manual_seed(seed)
    config = {"name": "tarnet", **SIZES, **changes}
    return build_model(config, schema, random_statistics(schema.num_treatments))


def trained(schema: DataSchema, seed: int = 0) -> TARNet:
    """A model far from its start: users, ids and arms all make a difference."""
    model = build(schema, seed)
    with torch.no_grad():
        for heads in (model.value_heads, model.cost_heads):
            heads.out.normal_()
            heads.bias.normal_()
        for name, parameter in model.named_parameters():
            if "embedding_bags" in name:
                parameter.normal_()
            elif name.startswith("trunk") or "heads.hidden.weight" in name:
                parameter.mul_(2)
    return model.eval()


def predict(model: TARNet, batch: RCTBatch) -> ResponsePrediction:
    with torch.no_grad():
        return model(batch.dense, batch.sparse)


def everyone(values: tuple[float, ...], users: int) -> Tensor:
    return torch.tensor(values).expand(users, -1)


@pytest.mark.parametrize("treatments", [2, 3, 8])
@pytest.mark.parametrize("kind", ["continuous", "binary"])
def test_untrained_it_predicts_the_arm_means(treatments: int, kind: str) -> None:
    schema = random_schema(treatments, value_kind=kind, cost_kind=kind)
    model, means = build(schema), random_statistics(treatments)
    prediction = predict(model, random_batch(20, treatments))
    assert prediction.value.shape == prediction.cost.shape == (20, treatments)
    torch.testing.assert_close(prediction.value, everyone(means.value_mean, 20), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prediction.cost, everyone(means.cost_mean, 20), rtol=1e-5, atol=1e-6)


def test_arms_without_value_or_cost_start_near_zero() -> None:
    schema = random_schema(2, cost_kind="continuous", value_kind="binary")
    statistics = replace(random_statistics(2), value_mean=(0.0, 1.0), cost_mean=(0.0, 0.3))
    prediction = predict(build_model({"name": "tarnet", **SIZES}, schema, statistics), random_batch(5, 2))
    assert prediction.value.isfinite().all()
    assert prediction.cost.isfinite().all()
    torch.testing.assert_close(prediction.value, everyone((0.0, 1.0), 5), rtol=0, atol=1e-3)
    torch.testing.assert_close(prediction.cost, everyone((0.0, 0.3), 5), rtol=0, atol=1e-3)


def test_ranges_of_the_outcomes() -> None:
    batch = random_batch(200)
    binary = predict(trained(random_schema(value_kind="binary", cost_kind="binary")), batch)
    for p in (binary.value, binary.cost):
        assert ((p > 0) & (p < 1)).all()
        assert p.std() > 0.01
    real = predict(trained(random_schema()), batch)
    assert (real.cost > 0).all()
    assert (real.value < 0).any()


def test_users_differ_once_trained() -> None:
    # The equalities between predictions below would hold for a constant, too.
    prediction = predict(trained(random_schema()), random_batch(20))
    assert (prediction.value.std(0) > 1e-2).all()
    assert (prediction.cost.std(0) > 1e-3).all()


def test_known_costs_are_exact_and_learn_nothing() -> None:
    model, batch = trained(random_schema(known_cost=(0.0, 1.7, None))), random_batch(20)
    prediction = model(batch.dense, batch.sparse)
    assert torch.equal(prediction.cost[:, :2], torch.tensor([0.0, 1.7]).expand(20, -1))
    assert prediction.cost[:, 2].std() > 1e-3

    prediction.cost[:, :2].sum().backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    prediction.cost[:, 2].sum().backward()
    out, bias = model.cost_heads.out.grad, model.cost_heads.bias.grad
    assert out is not None
    assert bias is not None
    assert not out[:2].any()
    assert not bias[:2].any()
    assert out[2].any()
    assert bias[2].any()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("without", ["sparse", "dense"])
def test_one_kind_of_feature_suffices(without: str) -> None:
    schema = random_schema(**{without: ()})
    statistics = random_statistics()
    if without == "dense":
        statistics = replace(statistics, dense_mean=(), dense_std=())
    batch = random_batch(10)
    dense = batch.dense[:, :0] if without == "dense" else batch.dense
    sparse = None if without == "sparse" else batch.sparse
    model = build_model({"name": "tarnet", **SIZES}, schema, statistics)
    torch.nn.init.normal_(model.value_heads.out)
    prediction = model(dense, sparse)
    assert prediction.value.shape == (10, 3)
    assert prediction.value.std(0).max() > 1e-3
    prediction.value.sum().backward()


@pytest.mark.parametrize("seed", range(3))
def test_a_user_is_predicted_alone_as_in_company(seed: int) -> None:
    model, batch = trained(random_schema(), seed), random_batch(12, seed=seed)
    together = predict(model, batch)
    for cut in (slice(0, 1), slice(3, 9), slice(11, 12)):
        part = predict(model, batch[cut])
        torch.testing.assert_close(part.value, together.value[cut])
        torch.testing.assert_close(part.cost, together.cost[cut])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    shuffled = predict(model, random_table(12, seed=seed).batch(order))
    torch.testing.assert_close(shuffled.value, together.value[order])
    torch.testing.assert_close(shuffled.cost, together.cost[order])


def test_unknown_ids_share_row_zero() -> None:
    model, batch = trained(random_schema()), random_batch(2)
    ids = {"user_id": [[0], [7]], "viewed": [[0, 0], [0]]}

    def run() -> Tensor:
        values = torch.tensor([i for users in ids.values() for user in users for i in user])
        lengths = torch.tensor([len(user) for users in ids.values() for user in users])
        return predict(model, replace(batch, sparse=KeyedJaggedTensor(list(ids), values, lengths=lengths))).value

    before = run()
    tables = model.sparse_arch.tables.embedding_bags  # type: ignore[union-attr]
    with torch.no_grad():
        tables["user_id"].weight[0] += 1
    after = run()
    assert not torch.allclose(after[0], before[0])
    torch.testing.assert_close(after[1], before[1])


def test_every_parameter_learns_and_only_seen_ids_do() -> None:
    model, batch = trained(random_schema()), random_batch(6)
    prediction = model(batch.dense, batch.sparse)
    (prediction.value.square().sum() + prediction.cost.square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert batch.sparse is not None
    for key, feature in batch.sparse.to_dict().items():
        gradient = model.sparse_arch.tables.embedding_bags[key].weight.grad  # type: ignore[union-attr]
        assert set(gradient.abs().sum(1).nonzero().flatten().tolist()) == set(feature.values().tolist())


def test_encoded_features_then_raw_outputs_are_the_prediction() -> None:
    model, batch = trained(random_schema()), random_batch(9)
    with torch.no_grad():
        features = encoded(model, batch)
        staged = model.respond(model.raw(features))
    assert features.shape == (9, model.width)
    whole = predict(model, batch)
    assert torch.equal(staged.value, whole.value)
    assert torch.equal(staged.cost, whole.cost)


def test_dense_features_are_standardised_and_clipped() -> None:
    model, batch = trained(random_schema()), random_batch(4)
    statistics = replace(random_statistics(), dense_mean=(50.0, 50.0, 50.0), dense_std=(20.0, 20.0, 20.0))
    scaled = build_model({"name": "tarnet", **SIZES}, random_schema(), statistics).eval()
    weights = {k: v for k, v in model.state_dict().items() if not k.startswith("dense_") or k.startswith("dense_arch")}
    assert set(scaled.load_state_dict(weights, strict=False).missing_keys) == {"dense_mean", "dense_std"}
    other = predict(scaled, replace(batch, dense=batch.dense * 10))
    torch.testing.assert_close(other.value, predict(model, batch).value)
    far = [predict(model, replace(batch, dense=torch.full((4, 3), x))).value for x in (1e3, 1e30)]
    assert torch.equal(*far)


def test_dropout_acts_in_training_only() -> None:
    model, batch = build(random_schema(), dropout=0.5), random_batch(50)
    torch.nn.init.normal_(model.value_heads.out)
    model.eval()
    assert torch.equal(predict(model, batch).value, predict(model, batch).value)
    model.train()
    assert not torch.equal(predict(model, batch).value, predict(model, batch).value)


def test_names_of_the_state_are_stable() -> None:
    # Checkpoints hold these names.
    assert list(build(random_schema()).state_dict()) == [
        "dense_mean",
        "dense_std",
        "value_mean",
        "cost_mean",
        "value_conversion",
        "cost_conversion",
        "known_cost",
        "sparse_arch.tables.embedding_bags.user_id.weight",
        "sparse_arch.tables.embedding_bags.viewed.weight",
        "dense_arch.0.weight",
        "dense_arch.0.bias",
        "trunk.0.weight",
        "trunk.0.bias",
        "trunk.2.weight",
        "trunk.2.bias",
        "value_heads.out",
        "value_heads.bias",
        "value_heads.hidden.weight",
        "value_heads.hidden.bias",
        "cost_heads.out",
        "cost_heads.bias",
        "cost_heads.hidden.weight",
        "cost_heads.hidden.bias",
    ]


def test_a_state_restores_the_predictions() -> None:
    model, batch = trained(random_schema(known_cost=(0.0, None, None)), seed=1), random_batch(9)
    other = build(random_schema(known_cost=(0.0, None, None)), seed=2).eval()
    assert not torch.equal(predict(other, batch).value, predict(model, batch).value)
    other.load_state_dict(model.state_dict())
    assert torch.equal(predict(other, batch).value, predict(model, batch).value)
    assert torch.equal(predict(other, batch).cost, predict(model, batch).cost)


def test_tables_may_stay_unallocated() -> None:
    model = build_model({"name": "tarnet", **SIZES}, random_schema(), random_statistics(), sparse_device="meta")
    meta = {name for name, p in model.named_parameters() if p.is_meta}
    assert meta == {f"sparse_arch.tables.embedding_bags.{key}.weight" for key in ("user_id", "viewed")}


def test_unknown_models_are_named() -> None:
    with pytest.raises(InputError, match=r"model\.name='tarnett'; allowed: tarnet"):
        build_model({"name": "tarnett"}, random_schema(), random_statistics())
