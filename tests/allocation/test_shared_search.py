"""Open users spread over processes come to the end that all of them in one place come to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_budget.allocation import allocate, fill, search, shared_fill, shared_search
from lightning_budget.allocation.finish import Miss
from lightning_budget.allocation.frontier import LARGEST
from lightning_budget.allocation.policy import arms_at
from lightning_budget.allocation.sampled_bracket import bracket_from_clusters
from lightning_budget.allocation.settled import arm_dtype, settle
from lightning_budget.allocation.shared_decision import Decision
from lightning_budget.allocation.shared_search import decide, spend_at
from lightning_budget.allocation.shared_users import Block, OpenShare
from tests.allocation.cases import PROBLEMS, Make, plain
from tests.allocation.reference import budget_between, random_problem, recount


class Threads:
    """A team of threads of this process."""

    def __init__(self, size: int) -> None:
        self.size, self._barrier = size, threading.Barrier(size, timeout=60)
        self._slots: list[Any] = [None] * size
        self._rank = threading.local()
        self.sums: list[int] = []

    def gather(self, mine: Any) -> list[Any]:
        self._slots[self._rank.value] = mine
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()
        return found

    def total(self, mine: Tensor) -> Tensor:
        self.sums.append(mine.numel())
        return torch.stack(self.gather(mine)).sum(0)

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What each rank's work returns."""
        results: list[Any] = [None] * self.size

        def body(rank: int) -> None:
            self._rank.value = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:
                results[rank] = error
                self._barrier.abort()

        threads = [threading.Thread(target=body, args=(rank,)) for rank in range(self.size)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        errors = [r for r in results if isinstance(r, BaseException)]
        # The others only say that one of them is gone.
        for error in sorted(errors, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
            raise error
        return results


def keys_of(users: int) -> Tensor:
    return 7 * torch.arange(users).flip(0) + 3


def share_of(value: Tensor, cost: Tensor, rows: Tensor, bracket: tuple[float, float], cut: int) -> OpenShare:
    """What a rank with these rows holds after its pass, in blocks of at most ``cut`` users."""
    v, c, key = value[rows].T.contiguous(), cost[rows].T.contiguous(), keys_of(len(value))[rows]
    arm = torch.empty(len(rows), dtype=arm_dtype(len(v)))
    (part,) = settle(v, c, [bracket], arm)
    left = Block(v, c, key, rows).select(part.rows)
    cuts = [torch.arange(len(left.key))[i : i + cut] for i in range(0, max(len(left.key), 1), cut)]
    return OpenShare(bracket, lambda: (left.select(i) for i in cuts), len(left.key), part.spend, part.worth)


def solve(
    value: Tensor, cost: Tensor, budget: float, bracket: tuple[float, float], ranks: int, most: int
) -> tuple[Decision | Miss, Threads]:
    team = Threads(ranks)
    order = torch.randperm(len(value), generator=torch.Generator().manual_seed(ranks))
    found = team.run(lambda r: decide(share_of(value, cost, order[r::ranks], bracket, 100), budget, team, most))
    for other in found[1:]:
        assert type(other) is type(found[0])
        if isinstance(other, Decision):
            assert other.multiplier == found[0].multiplier
            assert torch.equal(other.place, found[0].place)
            assert torch.equal(other.arm, found[0].arm)
    return found[0], team


def arms_of(found: Decision, value: Tensor, cost: Tensor) -> Tensor:
    rows = torch.arange(len(value))
    return found.arms(Block(value.T, cost.T, keys_of(len(value)), rows))


@pytest.fixture(autouse=True)
def _few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "FINISH_USERS", 40)
    patient(monkeypatch, 7)


def patient(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """How many steps the fill passes over."""
    for module in (fill, search, shared_fill, shared_search):
        monkeypatch.setattr(module, "PATIENCE", steps)


@pytest.mark.parametrize("make", PROBLEMS)
@pytest.mark.parametrize("share", [0.001, 0.4, 1.2])
@pytest.mark.parametrize(("ranks", "most"), [(1, 30), (3, 10**6), (4, 30)])
def test_equals_everyone_in_one_place(make: Make, share: float, ranks: int, most: int) -> None:
    value, cost = make()
    budget = max(budget_between(cost, value, share), 1e-3)
    expected = allocate(value, cost, budget, key=keys_of(len(value)))
    found, team = solve(value, cost, budget, (0.0, LARGEST), ranks, most)
    assert isinstance(found, Decision)
    assert torch.equal(arms_of(found, value, cost), expected.assignment.long())
    assert found.certificate(len(value), budget) == expected.certificate()
    assert most > 30 or 0 < len(team.sums) <= 40 * ranks
    assert all(size <= 2 * 4096 + 1 for size in team.sums)


def test_few_meet_where_slopes_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch, 4)
    value, cost = random_problem(3, 4000, 4)
    gathered = []
    original = shared_search.search
    monkeypatch.setattr(
        shared_search, "search", lambda u, *a, **k: (gathered.append(u.value.shape[1]), original(u, *a, **k))[1]
    )
    solve(value, cost, budget_between(cost, value, 0.4), (0.0, LARGEST), 2, 100)
    assert gathered
    assert max(gathered) <= 100


@pytest.mark.parametrize("most", [10**6, 30])
def test_a_bracket_beside_the_multiplier_is_noticed(most: int) -> None:
    value, cost = plain()
    budget = budget_between(cost, value, 0.4)
    multiplier = allocate(value, cost, budget).multiplier
    above, _ = solve(value, cost, budget, (0.1 * multiplier, 0.5 * multiplier), 2, most)
    below, _ = solve(value, cost, budget, (2 * multiplier, 4 * multiplier), 2, most)
    assert isinstance(above, Miss)
    assert above.above
    assert isinstance(below, Miss)
    assert not below.above


def test_spend_at_counts_all_ranks() -> None:
    value, cost = plain()
    team = Threads(3)
    found = team.run(lambda r: spend_at(share_of(value, cost, torch.arange(900)[r::3], (0.5, 2.0), 70), 1.0, team))
    assert found == [recount(cost, arms_at(value.T, cost.T, 1.0))] * 3


@pytest.mark.parametrize("order", ["random", "sorted"])
@pytest.mark.parametrize("share", [0.02, 0.4, 0.98])
def test_brackets_from_clusters_hold_the_multiplier(order: str, share: float) -> None:
    """40 draws of 10 of 100 clusters; a bracket of four standard errors misses next to never."""
    value, cost = random_problem(4, 20_000, 4)
    if order == "sorted":
        by = value.amax(1).argsort()
        value, cost = value[by], cost[by]
    budget = budget_between(cost, value, share)
    true = allocate(value, cost, budget).multiplier
    misses, widths = 0, []
    for seed in range(40):
        drawn = torch.randperm(100, generator=torch.Generator().manual_seed(seed))[:10]
        rows = (200 * drawn[:, None] + torch.arange(200)).reshape(-1)
        low, high = bracket_from_clusters(value[rows].T, cost[rows].T, [200] * 10, 100, budget, 20_000)
        misses += not low <= true <= high
        widths.append((high - low) / true)
    assert misses <= 1
    assert order == "sorted" or share != 0.4 or sum(widths) / 40 < 2


def test_a_bracket_of_a_budget_below_the_sample_s_least_spend_reaches_to_the_end() -> None:
    value, cost = random_problem(5, 2_000, 4)
    cost = cost + 1
    low, high = bracket_from_clusters(value.T, cost.T, [200] * 10, 20, 1999.0 * 2, 4000)
    assert high == LARGEST
    assert low < LARGEST


def one_step(cost: Tensor, slope: float = 2.0) -> tuple[Tensor, Tensor]:
    """A free control and one arm of that cost ``[N]``, all of one slope."""
    both = torch.stack([torch.zeros_like(cost), cost], 1).double()
    return slope * both, both


def uneven_costs() -> tuple[Tensor, Tensor]:
    return one_step(torch.rand(400, generator=torch.Generator().manual_seed(0)).double())


def grid_costs() -> tuple[Tensor, Tensor]:
    return one_step(torch.randint(1, 9, (400,), generator=torch.Generator().manual_seed(1)).double() / 4)


def equal_costs() -> tuple[Tensor, Tensor]:
    return one_step(torch.ones(400))


def few_are_dear() -> tuple[Tensor, Tensor]:
    """Hundreds of cheap steps still fit after a dear one did not."""
    cost = 0.01 * (1 + torch.rand(400, generator=torch.Generator().manual_seed(2)).double())
    cost[::40] *= 400
    return one_step(cost)


def two_slopes() -> tuple[Tensor, Tensor]:
    """Half of the users have a step of slope 3 and then one of slope 2, the others the first one only."""
    price = torch.randint(1, 9, (400, 1), generator=torch.Generator().manual_seed(3)).double()
    # Nobody wants the last arm: the number of arms is one that other tests compile for, too.
    cost = price * torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    value = price * torch.tensor([[0.0, 3.0, 5.0, -1.0]])
    value[::2, 2] = -1
    return value, cost


def on_one_line() -> tuple[Tensor, Tensor]:
    """Slopes between arms differ in their last bits, and users have several steps of one slope."""
    _, cost = random_problem(12, 400, 5)
    return 0.3 * cost, cost


TIED = [uneven_costs, grid_costs, equal_costs, few_are_dear, two_slopes, on_one_line]


@pytest.mark.parametrize(("share", "patience"), [(0.02, 5), (0.5, 5), (0.5, 1024), (0.97, 5)])
@pytest.mark.parametrize("make", TIED)
def test_ties_are_filled_in_the_order_of_the_key(
    make: Make, share: float, patience: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient(monkeypatch, patience)
    monkeypatch.setattr(shared_search, "MOST_KEPT", 400)
    met: list[int] = []
    _count_gathered(met, monkeypatch)
    value, cost = make()
    budget = budget_between(cost, value, share)
    expected = allocate(value, cost, budget, key=keys_of(len(value)))
    for ranks in (1, 4):
        found, _ = solve(value, cost, budget, (0.0, LARGEST), ranks, 60)
        assert isinstance(found, Decision)
        assert torch.equal(arms_of(found, value, cost), expected.assignment.long())
        assert found.certificate(400, budget) == expected.certificate()
        assert len(found.place) <= patience + 1
    # Of one process; a user's steps of one slope stay together.
    assert max(met) <= 60 + 4


def test_few_steps_meet_where_all_users_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but a bin of the key are taken or left by a histogram; the last steps need no second look."""
    patient(monkeypatch, 4)
    looks: list[int] = []
    _count_gathered(looks, monkeypatch)
    value, cost = uneven_costs()
    solve(value, cost, budget_between(cost, value, 0.5), (1.0, 3.0), 1, 60)
    assert len(looks) == 1
    assert looks[0] <= 16


@pytest.mark.parametrize("same", [10, 10**6])
def test_users_with_one_key_go_by_their_place(same: int, monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch, 5)
    key = torch.arange(400) // same
    monkeypatch.setitem(globals(), "keys_of", lambda users: key)
    value, cost = uneven_costs()
    budget = budget_between(cost, value, 0.4)
    found, _ = solve(value, cost, budget, (0.0, LARGEST), 3, 30)
    assert isinstance(found, Decision)
    assert torch.equal(arms_of(found, value, cost), allocate(value, cost, budget, key=key).assignment.long())


def test_a_fill_that_looks_below_the_bracket_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    value, cost = two_slopes()
    free = recount(cost, torch.ones(400))
    # All but one step of slope 3 fit: nobody of slope 2 is in sight.
    found, _ = solve(value, cost, free - 0.5, (2.5, 3.5), 2, 30)
    assert isinstance(found, Miss)
    assert not found.above
    assert found.fits == 3.0


def test_a_sample_of_users_who_tie_gives_a_bracket_that_holds_them() -> None:
    value, cost = grid_costs()
    low, high = bracket_from_clusters(value.T, cost.T, [40] * 10, 20, 400.0, 800)
    assert low < 2.0 <= high


def _count_gathered(counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps and users that one process brings at a time."""
    together, walked = shared_search.search, shared_fill._next

    def counted_search(users: Any, *args: Any, **options: Any) -> Any:
        counts.append(users.value.shape[1])
        return together(users, *args, **options)

    def counted_next(*args: Any) -> Any:
        found = walked(*args)
        counts.append(len(found))
        return found

    monkeypatch.setattr(shared_search, "search", counted_search)
    monkeypatch.setattr(shared_fill, "_next", counted_next)
