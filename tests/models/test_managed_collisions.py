"""Maps from ids to table rows: who gets a row, who loses it, and that reading changes nothing."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_budget.batch import KeyedJaggedTensor
from lightning_budget.losses.cross_fitting import Features
from lightning_budget.models.embeddings import IdSlots, SparseEncoder
from lightning_budget.models.managed_collisions import ManagedIds, admission_interval
from lightning_budget.schema import EVICTIONS, UNKNOWN, Eviction, SparseFeature
from lightning_budget.training.given_rows import start_rows_anew
from lightning_budget.training.optimizers import step_in_backward
from lightning_budget.trial.check import logged_of
from tests.random_trials import random_schema, random_statistics, random_table

A, B, C, D, E = (7 + 10**17 * i for i in range(1, 6))


def batch(*ids: int) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(["user_id"], torch.tensor(ids, dtype=torch.int64), lengths=torch.ones(len(ids)).long())


def managed(rows: int, eviction: Eviction = "lfu", interval: int = 1) -> ManagedIds:
    return ManagedIds(["user_id"], [rows], [IdSlots(rows, eviction, interval)])


def rows_of(maps: ManagedIds, *ids: int) -> list[int]:
    return maps(batch(*ids)).values().tolist()


def see(maps: ManagedIds, *ids: int) -> list[int]:
    return sorted(maps.observe(batch(*ids)).get("user_id", torch.zeros(0)).tolist())


def test_each_id_gets_a_row_of_its_own_and_no_label_none() -> None:
    maps = managed(4)
    assert rows_of(maps, A, B, 0) == [UNKNOWN] * 3
    assert see(maps, A, 0, B, A, 0, 0, 0) == sorted(rows_of(maps, A, B))
    a, b = rows_of(maps, A, B)
    assert len({UNKNOWN, a, b}) == 3
    assert 1 <= min(a, b) <= max(a, b) <= 3
    assert rows_of(maps, B, 0, C, A) == [b, UNKNOWN, UNKNOWN, a]
    assert see(maps, A, B) == []
    assert see(maps, C) == [6 - a - b]
    assert rows_of(maps, A, B, C) == [a, b, 6 - a - b]


@pytest.mark.parametrize(
    ("eviction", "loser"),
    # A was seen most often and longest ago, C rarely and just now; B is in between.
    [("lfu", C), ("lru", A), ("distance_lfu", B)],
)
def test_the_row_of_whom_the_policy_names_is_given_away(eviction: Eviction, loser: int) -> None:
    maps = managed(4, eviction)
    for ids in ([A] * 30, [B] * 4, [C] * 2 + [B], [C], [C]) if eviction == "distance_lfu" else ([A] * 9, [B] * 4, [C]):
        see(maps, *ids)
    before = dict(zip((A, B, C), rows_of(maps, A, B, C), strict=True))
    assert sorted(before.values()) == [1, 2, 3]
    assert see(maps, *[D] * 3) == [before[loser]]
    after = dict(zip((A, B, C, D, E), rows_of(maps, A, B, C, D, E), strict=True))
    assert after == {**before, loser: UNKNOWN, D: before[loser], E: UNKNOWN}


def test_least_often_seen_by_a_loop() -> None:
    """Against counting by hand: a new id replaces the least frequent of the table if it came more often."""
    g = torch.Generator().manual_seed(0)
    maps, held = managed(9), Counter[int]()
    for _ in range(40):
        ids = (torch.rand(30, generator=g).square() * 40).long().add(1).tolist()
        see(maps, *ids)
        new = Counter(ids)
        for i in list(held):
            held[i] += new.pop(i, 0)
        # Ties: who is in stays in.
        best = sorted([*held.values(), *new.values()], reverse=True)[:8]
        known = [i for i, row in zip(range(1, 41), rows_of(maps, *range(1, 41)), strict=True) if row != UNKNOWN]
        held = Counter({i: held[i] or new[i] for i in known})
        assert sorted(held.values(), reverse=True) == best
        rows = rows_of(maps, *known)
        assert len(set(rows)) == len(rows)


def test_rows_are_given_every_so_many_batches() -> None:
    assert [admission_interval(n) for n in (2, 19_999, 50_000, 10**6, 10**9)] == [1, 1, 5, 100, 100]
    maps = managed(4, interval=3)
    assert see(maps, A) == see(maps, B) == []
    assert rows_of(maps, A, B) == [UNKNOWN, UNKNOWN]
    assert len(see(maps)) == 2  # a batch without ids is a batch
    assert UNKNOWN not in rows_of(maps, A, B)
    # A batch that the buffer, made for the first one, cannot take: rows are given before and counting goes on.
    see(maps, C, C)
    assert len(see(maps, *[D] * 500)) == 1
    assert UNKNOWN not in rows_of(maps, A, B, C)
    assert see(maps) == []
    assert len(see(maps, E)) == 1  # D came most often


def test_reading_and_evaluating_change_nothing_but_what_is_logged() -> None:
    maps = managed(3)
    see(maps, A)
    state = {k: v.clone() for k, v in maps.state_dict().items()}
    maps.eval()
    rows_of(maps, A, B, C, D)
    assert maps.shares() == {"user_id/occupied": 0.5}
    maps.train()
    rows_of(maps, A, B, 0, A)
    assert maps.shares() == {"user_id/unknown": 0.5, "user_id/occupied": 0.5}
    assert maps.shares() == {"user_id/occupied": 0.5}
    assert all(torch.equal(v, state[k]) for k, v in maps.state_dict().items())


@pytest.mark.parametrize("eviction", EVICTIONS)
def test_a_checkpoint_between_two_admissions_goes_on_as_if_nothing_had_been(eviction: Eviction) -> None:
    g = torch.Generator().manual_seed(1)
    sizes = [0, 3, *torch.randint(0, 40, (18,), generator=g).tolist()]
    batches = [torch.randint(1, 30, (n,), generator=g).tolist() for n in sizes]
    whole = managed(9, eviction, 4)
    changed = [see(whole, *ids) for ids in batches]
    assert sum(len(c) > 0 for c in changed) > 1
    for cut in (0, 1, 2, 10, 11):
        first = managed(9, eviction, 4)
        assert [see(first, *ids) for ids in batches[:cut]] == changed[:cut]
        file = io.BytesIO()
        torch.save({"state": first.state_dict(), "pending": first.pending()}, file)
        file.seek(0)
        saved: dict[str, Any] = torch.load(file, weights_only=True)
        second = managed(9, eviction, 4)
        see(second, *range(50, 60))  # a module that has already counted something else
        second.resume(saved["pending"])
        second.load_state_dict(saved["state"])
        assert [see(second, *ids) for ids in batches[cut:]] == changed[cut:]
        assert rows_of(second, *range(1, 30)) == rows_of(whole, *range(1, 30))


FEATURES = (
    SparseFeature("user_id", 9, ids="managed"),
    SparseFeature("city", 5),
    SparseFeature("viewed", 6, is_list=True, ids="managed", eviction="lru"),
)


def jagged() -> KeyedJaggedTensor:
    """Four users with an id, a city and lists of ids."""
    values = torch.tensor([A, B, 0, A, 1, 2, 3, 4, A, B, C, 0])
    return KeyedJaggedTensor(["user_id", "city", "viewed"], values, lengths=torch.tensor([1] * 8 + [2, 0, 1, 1]))


def test_the_encoder_pools_the_rows_that_the_maps_name() -> None:
    encoder, ids = SparseEncoder(FEATURES, embedding_dim=4), jagged()
    assert encoder.managed is not None
    encoder.managed.observe(ids)
    weight = {f.name: encoder.tables.embedding_bags[f.name].weight.detach() for f in FEATURES}
    a, b = (encoder.managed.maps[0].slots(torch.tensor([x])) + 1 for x in (A, B))  # type: ignore[operator]
    users = torch.cat([weight["user_id"][int(i)][None] for i in (a, b, torch.tensor(0), a)])
    out = encoder(ids)
    torch.testing.assert_close(out[:, :4], users)
    torch.testing.assert_close(out[:, 4:8], weight["city"][[1, 2, 3, 4]])
    viewed = [int(encoder.managed.maps[2 - 1].slots(torch.tensor([x])) + 1) for x in (A, B, C)]  # type: ignore[operator]
    torch.testing.assert_close(out[0, 8:], weight["viewed"][viewed[:2]].mean(0))
    assert out[1, 8:].tolist() == [0] * 4
    torch.testing.assert_close(out[2, 8:], weight["viewed"][viewed[2]])
    torch.testing.assert_close(out[3, 8:], weight["viewed"][UNKNOWN])
    nobody = KeyedJaggedTensor(["user_id", "city", "viewed"], ids.values()[:0], lengths=torch.zeros(0).long())
    assert encoder.managed(nobody).values().tolist() == []


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
def test_rows_given_to_others_start_anew(optimizer: str) -> None:
    encoder = SparseEncoder(FEATURES, embedding_dim=4)
    step_in_backward(encoder, 0.1, optimizer)
    assert encoder.managed is not None
    encoder.managed.observe(jagged())
    encoder(jagged()).square().sum().backward()
    bags: Any = encoder.tables.embedding_bags
    weights = {f.name: bags[f.name].weight for f in FEATURES}
    before = {name: w.detach().clone() for name, w in weights.items()}

    def state() -> list[Tensor]:
        (of_users,) = weights["user_id"]._in_backward_optimizers
        return [x for x in of_users.state[weights["user_id"]].values() if x.dim()]

    old = [x.clone() for x in state()]
    start_rows_anew(encoder, {"user_id": torch.tensor([1, 3])})
    for now, was in zip([weights["user_id"], *state()], [before["user_id"], *old], strict=True):
        assert not now[[1, 3]].any()
        assert torch.equal(now[[0, 2, 4, 5, 6, 7, 8]], was[[0, 2, 4, 5, 6, 7, 8]])
    assert len(old) == (optimizer != "sgd")
    assert all(x.any() for x in old)
    assert all(torch.equal(weights[n], before[n]) for n in ("city", "viewed"))


def test_what_takes_ids_for_rows_is_not_given_managed_ids() -> None:
    """Cross-fitting leaves them out, and the checks of a trial see them by levels that fit the table."""
    table = random_table(200)
    ids = torch.randint(1, 2**62, (200,), generator=torch.Generator().manual_seed(0))
    ids[:20] = UNKNOWN
    table.ids["user_id"] = ids
    sparse = (SparseFeature("user_id", 12, ids="managed"), random_schema().sparse[1])
    schema = random_schema(sparse=sparse)
    features = Features.of(schema, random_statistics(), max_categories=64)
    assert features.first.tolist() == [-1, 0]
    seen = logged_of(table, schema).ids[0]
    assert seen.values[:20].tolist() == [UNKNOWN] * 20
    assert seen.values[20:].unique().tolist() == list(range(1, 12))
