"""What holds for every learner of the registry: where it starts, what learns, and that serving computes the same."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import CASES, IDS, OWN, SIZES, build, encoded, shaken, total_loss, trial
from random_trials import random_schema, random_statistics

from lightning_budget.errors import InputError
from lightning_budget.models.learner import Learner
from lightning_budget.models.learners import complete_config, model_config, model_options
from lightning_budget.models.registry import MODELS, build_model
from lightning_budget.models.responses import Funnel, OnConversion, Response
from lightning_budget.serving import ServingModel, export_program
from lightning_budget.training.export import load_model
from lightning_budget.training.resize import resize_checkpoint
from lightning_budget.training.serving_export import serving_inputs, to_serving

EXPORTED: dict[str, dict[str, Any]] = {
    "s_learner": {"value_head": "ziln", "backbone": "dcn_v2"},
    "t_learner": {"value_head": "funnel", "backbone": "dcn_v2", "cross_rank": 2, "dropout": 0.3},
    "tarnet": {"value_head": "monotone", "cost_head": "monotone", "share_doses": 2},
    "described_tarnet": OWN,
}
"""Options under which a learner is exported, so that together every option is once."""


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_untrained_it_predicts_the_arm_means_and_then_every_parameter_learns(
    name: str, options: dict[str, Any]
) -> None:
    for treatments in (2, 8):
        model, batch = build(name, treatments, **options), trial(48, treatments)
        prediction, means = model(batch.dense, batch.sparse), random_statistics(treatments)
        for got, mean in ((prediction.value, means.value_mean), (prediction.cost, means.cost_mean)):
            torch.testing.assert_close(got, torch.tensor(mean).expand(48, -1), rtol=1e-5, atol=1e-6)
        total_loss(shaken(model).train(), batch).backward()
        for parameter, p in model.named_parameters():
            # The ranking's loss is training's; here its scores reach the loss by way of the value alone.
            assert p.grad is not None, parameter
            assert p.grad.isfinite().all(), parameter
            assert p.grad.any(), parameter


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_user_is_predicted_alone_as_in_company(name: str, options: dict[str, Any]) -> None:
    model, batch = shaken(build(name, **options)), trial(9)
    with torch.no_grad():
        together, alone = model(batch.dense, batch.sparse), model(batch[4:5].dense, batch[4:5].sparse)
    assert together.value.std(0).max() > 1e-3
    torch.testing.assert_close(alone.value, together.value[4:5])
    torch.testing.assert_close(alone.cost, together.cost[4:5])


@pytest.mark.parametrize("name", MODELS)
def test_the_exported_program_is_the_training_model(name: str) -> None:
    options = EXPORTED.get(name, {})
    schema = {"known_cost": (0.0, None, None)} if name == "dragonnet" else {}
    model = shaken(build(name, schema=schema, **options))
    serving = to_serving(model, random_schema(**schema), random_statistics().to_dict(), 0.7)
    program = export_program(serving).module()
    for rows in (0, 1, 9):
        users = trial(9, seed=rows)[:rows]
        inputs, price = serving_inputs(users), torch.tensor(0.7, dtype=torch.float64)
        with torch.no_grad():
            plain, exported = serving(*inputs), program(*inputs, price)
        for got, wanted in zip(exported, plain, strict=True):
            assert torch.equal(got, wanted)
        if rows:
            wanted = model(users.dense, users.sparse)
            torch.testing.assert_close(plain.value, wanted.value, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(plain.cost, wanted.cost, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_it_learns_what_the_arms_do_to_whom(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = trial(300)
    x = batch.dense[:, 0].sub(5).div(2)
    level = batch.treatment.float()
    effect = torch.where(x > 0, 1.0, 0.2)
    noise = 0.1 * torch.randn(300, generator=generator)
    batch = replace(batch, value=1 + effect * level + noise, cost=(0.1 + level * torch.sigmoid(x)))
    means = [[float(y[batch.treatment == j].mean()) for j in range(3)] for y in (batch.value, batch.cost)]
    statistics = replace(random_statistics(), value_mean=means[0], cost_mean=means[1])
    torch.manual_seed(0)
    config = {"name": name, **SIZES, "embedding_dim": 1}
    model = build_model(config, random_schema(), statistics)
    truth = 1 + effect.unsqueeze(1) * torch.arange(3)
    start = (torch.tensor(means[0]) - truth).square().mean()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        total_loss(model, batch).backward()
        optimizer.step()
    found = model(batch.dense, batch.sparse).value.detach()
    assert (found - truth).square().mean() < 0.5 * start


@pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)
def test_a_config_and_its_learner_tell_each_other(name: str, options: dict[str, Any]) -> None:
    model = build(name, **options)
    config = model_config(model)
    assert config == complete_config({"name": name, **SIZES, **options})
    other = build_model(config, random_schema(), random_statistics())
    other.load_state_dict(model.state_dict())
    # Which entries are blocks of arms is what resizing goes by.
    more = build(name, 4, **options).state_dict()
    for entry, tensor in model.state_dict().items():
        if model.is_by_arm(entry):
            assert (tensor.shape[0] * 4, tensor.shape[1:]) == (more[entry].shape[0] * 3, more[entry].shape[1:]), entry
        else:
            assert entry == "known_cost" or tensor.shape == more[entry].shape, entry


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "tarnet", "arm_dim": 3}, "model.arm_dim=3 with model.name=tarnet; allowed: embedding_dim, "),
        ({"name": "s_learner", "arm_dim": 0}, "model.arm_dim=0; allowed: a width of at least 1"),
        ({"name": "s_learner", "share_doses": 1}, "model.share_doses=1 with a SLearner"),
        ({"name": "tarnet", "backbone": "cnn"}, "model.backbone='cnn'; allowed: mlp, dcn_v2"),
        ({"name": "tarnet", "cross_layers": 0}, "model.cross_layers=0; allowed: at least 1"),
        ({"name": "tarnet", "cost_head": "ziln"}, "model.cost_head='ziln'; allowed: auto, plain, monotone, funnel"),
        ({"name": "tarnet", "value_head": "hurdle"}, "allowed: auto, plain, monotone, funnel, ziln"),
        ({"name": "dragonnet", "targeted_weight": -1.0}, "model.targeted_weight=-1; allowed: a number of at least 0"),
        ({"name": "descn", "cost_head": "monotone"}, "model.cost_head=monotone with a DESCN"),
        ({"name": "descn", "wide": True}, "model.wide=true with a DESCN"),
        ({"name": "tarnet", "value_head": "on_conversion"}, "model.value_head='on_conversion'; allowed: auto, plain"),
        (
            {"name": "tarnet", "cost_head": "on_conversion"},
            "cost_head=on_conversion beside a value without a probability",
        ),
        ({"name": "direct_ranking", "cost_head": "on_conversion"}, "cost_head=on_conversion of this learner; allowed"),
        (
            {"name": "descn", "value_head": "funnel", "cost_head": "on_conversion"},
            "cost_head=on_conversion of this learner; allowed",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as told:
        build_model(config, random_schema(), random_statistics())
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_auto_heads_are_what_the_outcomes_need() -> None:
    heads = {"value_head": "auto", "cost_head": "auto"}
    model = build("tarnet", schema={"value_kind": "binary"}, **heads)
    assert type(model.value_response) is Response
    assert type(model.cost_response) is Funnel
    statistics = replace(random_statistics(), value_min=-0.5)
    model = build_model({"name": "tarnet", **SIZES, **heads}, random_schema(), statistics)
    assert type(model.value_response) is Response


@pytest.mark.parametrize(
    ("name", "value", "shares", "known", "kind"),
    [
        ("tarnet", "auto", (0.0, 0.0, 1e-3), (None,) * 3, OnConversion),
        ("tarnet", "plain", (0.0, 0.0, 0.0), (None,) * 3, Funnel),
        ("tarnet", "monotone", (0.0, 0.0, 0.0), (None,) * 3, Funnel),
        ("descn", "auto", (0.0, 0.0, 0.0), (None,) * 3, Funnel),
        ("tarnet", "ziln", (0.0, 0.0, 0.01), (None,) * 3, Funnel),
        ("tarnet", "ziln", (0.0, 0.0, 0.01), (0.0, None, 0.5), OnConversion),
        ("tarnet", "auto", (), (None,) * 3, Funnel),
    ],
)
def test_auto_takes_a_cost_to_be_one_of_conversions_where_others_have_hardly_any(
    name: str, value: str, shares: tuple[float, ...], known: tuple[float | None, ...], kind: type
) -> None:
    config = {"name": name, **SIZES, "value_head": value, "cost_head": "auto"}
    statistics = replace(random_statistics(), unconverted_cost=shares)
    model = build_model(config, random_schema(known_cost=known), statistics)
    assert type(model.cost_response) is kind


def test_a_cost_that_others_have_is_none_of_conversions() -> None:
    config = {"name": "tarnet", **SIZES, "value_head": "funnel", "cost_head": "on_conversion"}
    statistics = replace(random_statistics(), unconverted_cost=(0.5, 0.0, 0.06))
    with pytest.raises(InputError, match=r"rows without a conversion have 6\.0% of an arm's cost; allowed: at most 5%"):
        build_model(config, random_schema(known_cost=(0.0, None, None)), statistics)
    with pytest.raises(InputError, match="cost_head=on_conversion on a binary cost"):
        build("tarnet", schema={"cost_kind": "binary"}, value_head="funnel", cost_head="on_conversion")


@pytest.mark.parametrize("value", ["funnel", "ziln", "plain"])
def test_a_cost_on_conversion_is_the_value_s_conversion_times_what_it_costs_then(value: str) -> None:
    schema = {"value_kind": "binary"} if value == "plain" else {}
    model = build("tarnet", schema=schema, value_head=value, cost_head="on_conversion")
    batch = trial(40)
    batch.value[::3] = 0
    if value == "plain":
        batch.value.copy_(batch.value > 0)
    torch.testing.assert_close(model(batch.dense, batch.sparse).cost, model.cost_mean.expand(40, 3))
    output = shaken(model).outputs(batch.dense, batch.sparse)
    raw = {name: x.detach() for name, x in output.extra.items()}
    logit, log = model.cost_response.parts(raw["cost"], model.cost_start)  # type: ignore[attr-defined]
    then = model.cost_scale * torch.sigmoid(logit) * log.exp()
    if value == "plain":
        converted = output.prediction.value
    else:
        converted = torch.sigmoid(raw["value"][..., 0] + model.value_conversion.logit())
    torch.testing.assert_close(output.prediction.cost, converted * then)
    losses = model.cost_losses(batch, output)
    assert losses is not None
    assert not losses[batch.value == 0].any()
    i = int(batch.value.nonzero()[0])
    arm, y = int(batch.treatment[i]), float(batch.cost[i])
    size = y / float(model.cost_scale * log[i, arm].exp())
    wanted = -float(torch.nn.functional.logsigmoid(logit[i, arm])) + size - math.log(size) - 1
    assert float(losses[i].detach()) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("degree", [0, 2])
def test_a_wide_learner_is_linear_in_dense_features_beside_its_trunk(degree: int) -> None:
    model = shaken(build("tarnet", treatments=4, wide=True, share_doses=degree))
    batch = trial(9, 4)
    wide = model.wide_value_heads.weight
    with torch.no_grad():
        with_it = model.outputs(batch.dense, batch.sparse).extra
        deep = model.raw(encoded(model, batch))
        x = ((batch.dense - 5) / 2).clamp(-8, 8)
        for j in range(4):
            own = sum((j / 3) ** r * wide[r] for r in range(degree + 1)) if degree else wide[j]
            torch.testing.assert_close(with_it["value"][:, j] - deep["value"][:, j], x @ own)
    assert not torch.equal(with_it["cost"], deep["cost"])


def test_heads_that_do_not_fit_the_data() -> None:
    for head in ("funnel", "ziln"):
        with pytest.raises(InputError, match=f"value_head={head} on a binary value"):
            build("tarnet", schema={"value_kind": "binary"}, value_head=head)
        model = build("tarnet", value_head=head)
        batch = replace(trial(6), value=torch.tensor([1.0, 0, -2, 0, 1, 1]))
        with pytest.raises(InputError, match=r"-2 under a head of kind funnel or ziln"):
            total_loss(model, batch)
    with pytest.raises(InputError, match=r"does not rise from each to the next: arm_0 0, arm_1 0\.5, arm_2 0\.5"):
        build("tarnet", schema={"known_cost": (0.0, 0.5, 0.5)}, value_head="monotone")


def test_what_a_config_leaves_out_is_the_default() -> None:
    assert model_options({"name": "tarnet", "arm_dim": None}) == model_options({"name": "tarnet"})
    old = {"name": "tarnet", **SIZES, "dropout": 0.0}
    assert complete_config(old) == complete_config({**old, "backbone": "mlp", "share_doses": 0, "arm_dim": None})
    assert complete_config(old) != complete_config({**old, "backbone": "dcn_v2"})


def write(path: Path, name: str, **options: Any) -> Learner:
    """A checkpoint of a learner of three arms."""
    model = shaken(build(name, **options))
    hyper = {"schema": random_schema().to_dict(), "statistics": random_statistics().to_dict()}
    hyper["model"] = {"name": name, **SIZES, **options}
    state = {f"net.{k}": v for k, v in model.state_dict().items()}
    torch.save({"hyper_parameters": hyper, "state_dict": state}, path)
    return model


@pytest.mark.parametrize("name", ["s_learner", "t_learner", "dragonnet", "descn"])
def test_a_treatment_more_leaves_the_others_as_they_are(tmp_path: Path, name: str) -> None:
    model, batch = write(tmp_path / "old.ckpt", name), trial(5)
    resize_checkpoint(tmp_path / "old.ckpt", tmp_path / "new.ckpt", random_schema(4), random_statistics(4))
    more = load_model(tmp_path / "new.ckpt")
    with torch.no_grad():
        wider, kept = more(batch.dense, batch.sparse), model(batch.dense, batch.sparse)
    assert wider.value.shape == (5, 4)
    torch.testing.assert_close(wider.value[:, :3], kept.value)
    torch.testing.assert_close(wider.cost[:, :3], kept.cost)


def test_arms_that_build_on_each_other_cannot_be_resized(tmp_path: Path) -> None:
    write(tmp_path / "old.ckpt", "tarnet", value_head="monotone")
    with pytest.raises(InputError, match="its heads build on the order of its arms"):
        resize_checkpoint(tmp_path / "old.ckpt", tmp_path / "new.ckpt", random_schema(4), random_statistics(4))


def test_options_that_arms_are_joined_by() -> None:
    joined = [build("tarnet", **o).joins_arms for o in ({"share_doses": 1}, {"cost_head": "monotone"}, {})]
    assert joined == [True, True, False]


def test_every_learner_is_told_by_its_own_options() -> None:
    for kind in MODELS.values():
        assert issubclass(kind, Learner)
        assert list(inspect.signature(kind).parameters) == ["schema", "statistics", "sparse_arch", "options"]
        assert all(f.default is not None for f in fields(kind.kind))


def test_serving_shares_the_weights() -> None:
    model = build("t_learner")
    serving = to_serving(model, random_schema(), random_statistics().to_dict())
    assert isinstance(serving, ServingModel)
    assert serving.net.get_parameter("trunk.0.weight").data_ptr() == model.get_parameter("trunk.0.weight").data_ptr()
