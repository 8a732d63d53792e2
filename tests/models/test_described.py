"""Users that are described: what their embeddings learn from, and what they do not."""

from __future__ import annotations

import pytest
import torch
from learner_cases import SIZES, trial
from random_trials import random_schema, random_statistics

from lightning_budget.errors import InputError
from lightning_budget.models.described import DescribedTARNet, DescribedTARNetOptions
from lightning_budget.models.embeddings import SparseEncoder
from lightning_budget.models.tarnet import TARNet


def described(schema: dict[str, object] | None = None, **options: object) -> DescribedTARNet:
    torch.manual_seed(0)
    kept = {k: tuple(v) if isinstance(v, list) else v for k, v in SIZES.items()}
    chosen = DescribedTARNetOptions(**{**kept, **options})  # type: ignore[arg-type]
    data = random_schema(3, **(schema or {}))
    encoder = SparseEncoder(data.sparse, chosen.embedding_dim) if data.sparse else None
    statistics = random_statistics(3).to_dict()
    if not data.dense:
        statistics |= {"dense_mean": [], "dense_std": []}
    return DescribedTARNet(data, statistics, encoder, chosen)


def tables(model: DescribedTARNet) -> dict[str, torch.nn.Parameter]:
    return {name.split(".")[-2]: p for name, p in model.named_parameters() if "sparse_arch" in name}


def test_outcomes_do_not_reach_a_described_embedding_and_its_features_do() -> None:
    model, batch = described(), trial(12)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    output = model.outputs(batch.dense, batch.sparse)
    rows = tables(model)
    of_outcomes = output.prediction.value.square().sum() + output.prediction.cost.square().sum()
    user, viewed = torch.autograd.grad(of_outcomes, list(rows.values()), retain_graph=True, allow_unused=True)
    assert user is None or not user.any()
    assert viewed is not None
    assert viewed.any()
    loss = model.extra_losses(batch, output)["description_loss"]
    user, viewed = torch.autograd.grad(loss.mean(), list(rows.values()), allow_unused=True)
    assert user is not None
    assert user.any()
    assert viewed is None or not viewed.any()


def test_the_loss_is_of_standardised_features() -> None:
    model, batch = described(description_weight=0.5), trial(12)
    assert batch.sparse is not None
    user = tables(model)["user_id"][batch.sparse["user_id"].values()]
    x = ((batch.dense - 5) / 2).clamp(-8, 8)
    expected = 0.5 * (user @ model.describe.weight.T + model.describe.bias - x).square().mean(dim=1)
    loss = model.extra_losses(batch, model.outputs(batch.dense, batch.sparse))["description_loss"]
    torch.testing.assert_close(loss, expected)


def test_predictions_are_those_of_a_tarnet_of_the_same_weights() -> None:
    model, batch = described().eval(), trial(12)
    options = SIZES | {k: tuple(v) for k, v in SIZES.items() if isinstance(v, list)}
    plain = TARNet(
        model.schema, random_statistics(3).to_dict(), SparseEncoder(model.schema.sparse, 3), TARNet.kind(**options)
    )
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("describe.")})
    own, theirs = model(batch.dense, batch.sparse), plain.eval()(batch.dense, batch.sparse)
    torch.testing.assert_close((own.value, own.cost), (theirs.value, theirs.cost))
    assert model.extra_losses(batch, model.outputs(batch.dense, batch.sparse)) == {}


@pytest.mark.parametrize(
    ("schema", "options", "found"),
    [
        ({}, {"described": ("member",)}, "member"),
        ({"dense": ()}, {"described": ("user_id",)}, "without dense features"),
        ({"sparse": ()}, {"described": ("user_id",)}, "user_id"),
        ({}, {"described": ("user_id", "user_id")}, "each once"),
        ({}, {"description_weight": -1.0}, "description_weight"),
    ],
)
def test_what_cannot_be_described_is_refused(schema: dict[str, object], options: dict[str, object], found: str) -> None:
    with pytest.raises(InputError, match=found):
        described(schema, **options)


@pytest.mark.parametrize("schema", [{"dense": ()}, {"sparse": ()}])
def test_without_users_or_features_it_is_a_tarnet(schema: dict[str, object]) -> None:
    model, batch = described(schema), trial(12)
    dense = batch.dense[:, : len(model.schema.dense)]
    output = model.outputs(dense, batch.sparse)
    assert model.extra_losses(batch, output) == {}
    embeddings = None if model.sparse_arch is None else model.sparse_arch(batch.sparse)
    features = model.encode(model.standardised(dense), embeddings)
    torch.testing.assert_close(output.extra["value"], model.raw(features)["value"])


@pytest.mark.parametrize(
    ("options", "schema", "wide"),
    [
        ({}, {}, False),
        ({"wide_if_described": True}, {}, True),
        ({}, {"sparse": ()}, True),
        ({"wide_if_described": True}, {"dense": ()}, False),
    ],
)
def test_a_linear_part_where_nobody_is_described(options: dict, schema: dict, wide: bool) -> None:
    model = described(schema, wide=True, **options)
    assert ("wide_value_heads.weight" in model.state_dict()) == wide


def test_sensitivity_scales_the_effects_on_the_logit_by_one_factor_a_user() -> None:
    options = {"value_head": "funnel", "share_doses": 1, "sensitivity": True}
    model, batch = described(**options).eval(), trial(12)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not name.startswith("sensitivity."):
                p.add_(0.3 * torch.randn_like(p))

    def logits() -> torch.Tensor:
        raw = model.outputs(batch.dense, batch.sparse).extra["value"]
        return model.value_response.parts(raw, model.value_start)[0]  # type: ignore[attr-defined]

    common = logits()
    effects = common - common[:, :1]
    torch.testing.assert_close(effects, effects[:1].expand_as(effects))  # 1 at the start, and no head by the dose
    with torch.no_grad():
        model.sensitivity.log.weight.normal_()
        model.sensitivity.log.bias.fill_(0.2)
    own = logits()
    torch.testing.assert_close(own[:, 0], common[:, 0])
    x = model.standardised(batch.dense)
    factor = model.sensitivity(torch.cat((x, model.sparse_arch(batch.sparse)), dim=1))
    assert factor.std() > 0.1
    torch.testing.assert_close(own - own[:, :1], factor * effects)


@pytest.mark.parametrize(
    ("schema", "options"),
    [({"sparse": ()}, {}), ({}, {"value_head": "plain"}), ({"value_kind": "binary"}, {"value_head": "monotone"})],
)
def test_sensitivity_is_of_described_users_and_of_logits(schema: dict, options: dict) -> None:
    model = described(schema, share_doses=1, sensitivity=True, **{"value_head": "funnel", **options})
    assert not model.scales_effects
    assert not any(name.startswith("sensitivity") for name in model.state_dict())


def test_sensitivity_needs_shared_doses() -> None:
    with pytest.raises(InputError, match="share_doses"):
        described(sensitivity=True)
