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
from lightning_budget.models.user_effects import sums_of
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
    """Conversion, excess and dose of each row; payments only where they are given, too."""
    paid, q = others[3:] or (torch.zeros(len(rows)),) * 2
    module.observe(rows, torch.ones(len(rows)), sums_of(*others[:3], paid, q), epoch=epoch)


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
    np.testing.assert_allclose(module.effects[:, :2].numpy(), best[1], rtol=1e-4, atol=1e-5)
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


def payments(users: int, rows: int, spread: float, seed: int) -> tuple[torch.Tensor, ...]:
    """User (1, 2, …), conversion, excess, dose, payment and its probability for the average user; then true effects."""
    g = torch.Generator().manual_seed(seed)
    user, q = torch.randint(1, users, (rows,), generator=g), 0.2 + 0.6 * torch.rand(rows, generator=g)
    effect = spread * torch.randn(users, generator=g)
    paid = (torch.rand(rows, generator=g) < torch.sigmoid(q.logit() + effect[user])).float()
    none = torch.zeros(rows)
    return user, none, none, none, paid, q, effect


@pytest.mark.parametrize("seed", range(3))
def test_effects_on_payment_are_those_of_the_linearised_likelihood(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    variances = (0.0, 0.1, 0.4, 1.6)
    monkeypatch.setattr(user_effects, "RATIOS", variances)
    *rows, _ = payments(9, 300, 0.7, seed)
    rows[5][::4] = torch.nan  # nothing to learn of it
    module, found = fitted(9, *rows)
    likelihood, effects = dict.fromkeys(variances, 0.0), {v: [0.0] for v in variances}
    for u in range(1, 9):
        paid, q = (x[(rows[0] == u) & ~rows[5].isnan()].double().numpy() for x in (rows[4], rows[5]))
        information = (q * (1 - q)).sum()
        estimate = (paid - q).sum() / information
        for v in variances:
            # The estimate of a logit of variance v with the error variance that Bernoulli draws leave.
            likelihood[v] += multivariate_normal(0, v + 1 / information).logpdf(estimate)
            effects[v].append(v / (v + 1 / information) * estimate)
    best = max(variances, key=lambda v: likelihood[v])
    assert best > 0
    assert found["payment"] == pytest.approx(best**0.5)
    np.testing.assert_allclose(module.effects[:, 2].numpy(), effects[best], rtol=1e-4, atol=1e-5)
    assert not module.effects[:, :2].any()


def test_it_finds_who_pays_more_often_and_nobody_where_all_are_alike() -> None:
    *rows, true = payments(400, 20_000, 0.8, 1)
    module, found = fitted(400, *rows)
    assert 0.8 / 1.5 < found["payment"] < 0.8 * 1.5
    assert np.corrcoef(module.effects[1:, 2], true[1:])[0, 1] > 0.9
    # Shrunken as they should be: what they say of a user is neither more nor less than is there.
    assert 0.85 < np.polyfit(module.effects[1:, 2], true[1:], 1)[0] < 1.25
    alike, found = fitted(400, *payments(400, 20_000, 0.0, 2)[:6])
    assert found["payment"] < 0.1
    assert alike.effects[:, 2].abs().max() < 0.1


def test_a_single_payment_teaches_nothing() -> None:
    one = torch.ones(1)
    module, found = fitted(3, one.long(), 0 * one, 0 * one, 0 * one, one, 0.1 * one)
    assert found == {}
    assert not module.effects.any()


def test_effects_of_earlier_files_have_none_on_payment() -> None:
    module = UserHistory(5, "user_id")
    state = {**module.state_dict(), "effects": torch.randn(5, 2)}
    module.load_state_dict(dict(state))
    assert torch.equal(module.effects[:, :2], state["effects"])
    assert not module.effects[:, 2].any()
    *rows, _ = observed(5, 300, 0.3, 0.4, 5)
    half = UserHistory(5, "user_id")
    add(half, *rows, epoch=0)
    taken = half.state()
    assert taken is not None
    module.resume({**taken, "sums": taken["sums"][:, :6]})
    assert module.settle(False) == half.settle(False)
    assert torch.equal(module.effects, half.effects)


def test_effects_on_payment_keep_the_mean_of_payments_and_their_sign() -> None:
    q, effect = torch.linspace(0.02, 0.98, 25).unsqueeze(1), torch.linspace(-8, 8, 801)
    shift = user_effects.payment_shift(effect, q)
    assert (shift.diff(dim=1) > 0).all()
    assert (torch.sign(shift) == torch.sign(effect)).all()
    paid = torch.sigmoid(q.logit() + shift)
    small = effect.abs() < 0.98
    torch.testing.assert_close(paid[:, small].mean(1), q.squeeze(1))
    torch.testing.assert_close(paid[:, small], q + q * (1 - q) * effect[small])


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
    assert module.effects[1:7, :2].all()
    assert not module.effects[:, 2].any()
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
    shift = effects[:, :1] + effects[:, 1:2] * torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(after.value, before.value * shift.exp())
    torch.testing.assert_close(after.cost, before.cost)
    with model.as_in_training():
        torch.testing.assert_close(model(batch.dense, batch.sparse).value, before.value)
    torch.testing.assert_close(model(batch.dense, batch.sparse).value, after.value)
    torch.testing.assert_close(model.train()(batch.dense, batch.sparse).value, before.value)


def test_costs_on_conversion_shift_by_their_payment_but_not_in_training() -> None:
    model, batch = learner(cost_head="on_conversion"), trial(12)
    assert model.user_history is not None
    assert batch.sparse is not None
    raw = model.eval().outputs(batch.dense, batch.sparse).extra
    logit, log = model.cost_response.parts(raw["cost"], model.cost_start)  # type: ignore[attr-defined]
    conversion = model.conversion(raw["value"])
    effect = torch.randn(len(model.user_history.effects))
    model.user_history.effects[:, 2] = effect
    own = effect[batch.sparse["user_id"].values()].unsqueeze(1)
    q = torch.sigmoid(logit)
    paid = (q + q * (1 - q) * own).clamp(0.02 * q, 1 - 0.02 * (1 - q))
    expected = conversion * paid * model.cost_scale * log.exp()
    after = model(batch.dense, batch.sparse)
    torch.testing.assert_close(after.cost, expected)
    torch.testing.assert_close(after.value, model.respond(raw).value)
    with model.as_in_training():
        torch.testing.assert_close(model(batch.dense, batch.sparse).cost, model.respond(raw).cost)


def test_it_observes_payments_of_conversions_whose_cost_is_learned() -> None:
    model, batch = learner(cost_head="on_conversion").train(), trial(40)
    model.known_cost[0] = 0.0
    assert model.user_history is not None
    assert batch.sparse is not None
    batch.value[::2], batch.cost[::3] = 0, 0
    output = model.outputs(batch.dense, batch.sparse)
    model.observe(batch, output, 0)
    assert model.user_history.sums is not None
    logit, _ = model.cost_response.parts(output.extra["cost"].detach(), model.cost_start)  # type: ignore[attr-defined]
    expected = torch.zeros(len(model.user_history.sums), 2)
    for i, user in enumerate(batch.sparse["user_id"].values().tolist()):
        arm = int(batch.treatment[i])
        if user > 0 and batch.value[i] > 0 and arm > 0:
            q = float(torch.sigmoid(logit[i, arm]))
            expected[user] += torch.tensor([float(batch.cost[i] > 0) - q, q * (1 - q)])
    assert expected.any()
    torch.testing.assert_close(model.user_history.sums[:, 6:], expected)


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
    torch.testing.assert_close(torch.cat((sums[:, :6], running.unsqueeze(1)), 1), expected)
    assert not sums[:, 6:].any()  # a cost that is no matter of conversions
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
        module.observe(torch.tensor([1, 1, 0]), ones, torch.zeros(3, 8), epoch=0)
        assert module.seen(users, offsets).tolist() == [0, 2 * n, 0, 0, 0]
    module.settle(False)
    module.observe(torch.tensor([2, 1, 3]), torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3, 8), epoch=1)
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
