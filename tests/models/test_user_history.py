"""Random effects against the dense formulas, and where they enter predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from learner_cases import SIZES, trial
from random_trials import random_schema, random_statistics
from scipy.stats import multivariate_normal

from lightning_budget.models import user_effects
from lightning_budget.models.described import DescribedTARNet
from lightning_budget.models.embeddings import SparseEncoder
from lightning_budget.models.user_history import UserHistory


def observed(users: int, rows: int, level: float, slope: float, seed: int) -> tuple[torch.Tensor, ...]:
    """User (1, 2, …), conversion, excess and dose of rows, with standard deviations of the effects; noise of 0.6."""
    g = torch.Generator().manual_seed(seed)
    user = torch.randint(1, users, (rows,), generator=g)
    dose = torch.randint(0, 5, (rows,), generator=g) / 4
    effects = torch.randn(users, 2, generator=g) * torch.tensor([level, slope])
    excess = effects[user, 0] + effects[user, 1] * dose + 0.6 * torch.randn(rows, generator=g) - 0.18
    return user, (torch.rand(rows, generator=g) < 0.5).float(), excess, dose, effects


def add(module: UserHistory, rows: torch.Tensor, *others: torch.Tensor, epoch: int) -> None:
    module.observe(rows, torch.ones(len(rows)), *others, epoch=epoch)


def fitted(users: int, *rows: torch.Tensor) -> tuple[UserHistory, dict[str, float]]:
    module = UserHistory(users, "user_id")
    for part in zip(*(x.split(97) for x in rows), strict=True):
        add(module, *part, epoch=0)
    return module, module.settle(True)


@pytest.mark.parametrize("seed", range(4))
def test_effects_and_ratios_are_those_of_the_dense_normal_model(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = (0.0, 0.03, 0.3, 3.0)
    monkeypatch.setattr(user_effects, "RATIOS", ratios)
    *rows, _ = observed(9, 300, 0.4, 0.3, seed)
    module, found = fitted(9, *rows)
    kept = rows[1] > 0
    user, excess, dose = (x[kept].double().numpy() for x in (rows[0], rows[2], rows[3]))
    excess = excess - excess.mean()
    same, best = user[:, None] == user, (-np.inf, None, 0.0)
    for a in ratios:
        for s in ratios:
            v = np.eye(len(user)) + same * (a + s * np.outer(dose, dose))
            noise = excess @ np.linalg.solve(v, excess) / len(user)
            likelihood = multivariate_normal(np.zeros(len(user)), noise * v).logpdf(excess)
            if likelihood > best[0]:
                w = np.linalg.solve(v, excess)
                effects = [(a * w[user == u].sum(), s * (w * dose)[user == u].sum()) for u in range(9)]
                best = (likelihood, np.array(effects), noise)
    np.testing.assert_allclose(module.effects.numpy(), best[1], rtol=1e-4, atol=1e-5)
    assert found["noise"] == pytest.approx(best[2] ** 0.5, rel=1e-5)


def test_it_finds_the_effects_that_are_there_and_none_where_there_are_none() -> None:
    *rows, true = observed(400, 40_000, 0.3, 0.4, 1)
    module, found = fitted(400, *rows)
    for name, wanted in (("level", 0.3), ("slope", 0.4), ("noise", 0.6)):
        # The likelihood chooses among ratios that lie a factor of 2 apart.
        assert wanted / 1.5 < found[name] < wanted * 1.5
    for i in range(2):
        assert np.corrcoef(module.effects[1:, i], true[1:, i])[0, 1] > 0.7
    none, found = fitted(400, *observed(400, 40_000, 0.0, 0.0, 2)[:4])
    assert none.effects.abs().max() < 0.1
    assert max(found["level"], found["slope"]) < 0.05


def test_rows_count_once_whatever_their_order_and_those_of_an_epoch_alone() -> None:
    *rows, _ = observed(30, 900, 0.3, 0.4, 3)
    module, _ = fitted(30, *rows)
    order = torch.randperm(900)
    again = UserHistory(30, "user_id")
    add(again, *(x[:100] for x in rows), epoch=0)
    add(again, *(x[order] for x in rows), epoch=1)
    again.settle(True)
    torch.testing.assert_close(again.effects, module.effects, rtol=1e-4, atol=1e-6)
    half = UserHistory(30, "user_id")
    add(half, *(x[:450] for x in rows), epoch=7)
    resumed = UserHistory(30, "user_id")
    resumed.resume(half.state())
    add(resumed, *(x[450:] for x in rows), epoch=7)
    resumed.settle(True)
    torch.testing.assert_close(resumed.effects, module.effects, rtol=1e-4, atol=1e-6)


def test_unknown_users_and_users_without_conversions_have_no_effects() -> None:
    *rows, _ = observed(30, 900, 0.3, 0.4, 4)
    rows[0][::3], rows[1][rows[0] == 7] = 0, 0.0
    module, _ = fitted(30, *rows)
    assert not module.effects[[0, 7]].any()
    assert module.effects[1:7].all()
    values, offsets = torch.tensor([3, 0, 7, 31]), torch.tensor([0, 1, 2, 3, 3, 4])
    found = module(values, offsets)
    torch.testing.assert_close(found[0], module.effects[3])
    assert not found[1:].any()
    untouched = module.effects.clone()
    add(module, *(torch.zeros(0) for _ in range(4)), epoch=9)
    assert module.settle(True) == {}
    assert not module.counts.any()
    assert torch.equal(module.effects, untouched)


def learner(**options: object) -> DescribedTARNet:
    torch.manual_seed(0)
    chosen = {**{k: tuple(v) if isinstance(v, list) else v for k, v in SIZES.items()}, "value_head": "funnel"}
    schema = random_schema(3)
    model = DescribedTARNet(
        schema,
        random_statistics(3).to_dict(),
        SparseEncoder(schema.sparse, 3),
        DescribedTARNet.kind(**{**chosen, "user_history": True, **options}),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_predictions_shift_by_the_effects_but_not_in_training() -> None:
    model, batch = learner(), trial(12)
    assert model.user_history is not None
    assert batch.sparse is not None
    before = model.eval()(batch.dense, batch.sparse)
    user = batch.sparse["user_id"].values()
    model.user_history.effects.normal_()
    after = model(batch.dense, batch.sparse)
    effects = model.user_history.effects[user]
    shift = effects[:, :1] + effects[:, 1:] * torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(after.value, before.value * shift.exp())
    torch.testing.assert_close(after.cost, before.cost)
    with model.as_in_training():
        torch.testing.assert_close(model(batch.dense, batch.sparse).value, before.value)
    torch.testing.assert_close(model(batch.dense, batch.sparse).value, after.value)
    torch.testing.assert_close(model.train()(batch.dense, batch.sparse).value, before.value)


def test_it_observes_the_excess_of_rows_that_converted() -> None:
    model, batch = learner().train(), trial(40)
    assert model.user_history is not None
    assert batch.sparse is not None
    batch.value[::2] = 0
    batch.row[3] = -1
    output = model.outputs(batch.dense, batch.sparse)
    model.observe(batch, output, 0)
    sums, running = model.user_history.sums, model.user_history.running
    assert sums is not None
    assert running is not None
    raw = output.extra["value"][torch.arange(40), batch.treatment]
    _, log = model.value_response.parts(raw, model.value_start.of(batch.treatment))  # type: ignore[attr-defined]
    expected = torch.zeros(len(sums), 7)
    for i, user in enumerate(batch.sparse["user_id"].values().tolist()):
        if user > 0 and i != 3:
            expected[user, 6] += 1
            if batch.value[i] > 0:
                e, d = float((batch.value[i] / model.value_scale).log() - log[i].detach()), batch.treatment[i] / 2
                expected[user, :6] += torch.tensor([1, d, d * d, e, d * e, e * e])
    torch.testing.assert_close(torch.cat((sums, running.unsqueeze(1)), 1), expected)
    model.settle(True)
    assert torch.equal(model.user_history.counts, expected[:, 6])


def test_the_more_rows_a_user_has_the_more_counts_his_description(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = learner().eval(), trial(12)
    assert model.user_history is not None
    assert model.sparse_arch is not None
    assert batch.sparse is not None
    given: list[torch.Tensor] = []
    monkeypatch.setattr(model, "encode", lambda x, e: given.append(x) or DescribedTARNet.encode(model, x, e))
    x, user = model.standardised(batch.dense), batch.sparse["user_id"].values()
    described = model.describe(model.sparse_arch.tables.embedding_bags["user_id"].weight[user])
    for counted in (0.0, 4.0, 1e6):
        model.user_history.counts.fill_(counted)
        model(batch.dense, batch.sparse)
        own, together, rows = given.pop().split([x.shape[1], x.shape[1], 1], dim=1)
        torch.testing.assert_close(own, x)
        torch.testing.assert_close(together, (counted * described + x) / (counted + 1))
        torch.testing.assert_close(rows, torch.full_like(rows, (np.log1p(counted) - 3) / 2))


def test_in_a_first_epoch_rows_count_as_they_come() -> None:
    module, ones = UserHistory(5, "user_id"), torch.ones(3)
    users, offsets = torch.arange(5), torch.arange(6)
    for n in (1, 2):
        module.observe(torch.tensor([1, 1, 0]), ones, 0 * ones, 0 * ones, ones, epoch=0)
        assert module.seen(users, offsets).tolist() == [0, 2 * n, 0, 0, 0]
    module.settle(False)
    module.observe(torch.tensor([2, 1, 3]), torch.tensor([1.0, 1.0, 0.0]), 0 * ones, 0 * ones, ones, epoch=1)
    for _ in range(2):
        assert module.seen(users, offsets).tolist() == [0, 4, 1, 0, 0]
        module.settle(False)  # fewer rows than the epoch before: that of an epoch's middle
    module.settle(True)
    assert module.seen(users, offsets).tolist() == [0, 1, 1, 0, 0]


def test_a_value_without_sizes_has_counts_and_no_effects() -> None:
    model, batch = learner(value_head="plain"), trial(12)
    model.observe(batch, model.outputs(batch.dense, batch.sparse), 0)
    assert model.settle(True) == {}
    assert model.user_history is not None
    assert model.user_history.counts.any()
    assert not model.user_history.effects.any()


def test_without_a_history_nothing_is_observed() -> None:
    model, batch = learner(user_history=False), trial(12)
    assert model.user_history is None
    model.observe(batch, model.outputs(batch.dense, batch.sparse), 0)
    assert model.settle(True) == {}
    assert model.observed() is None
