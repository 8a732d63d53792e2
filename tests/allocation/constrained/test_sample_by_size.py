from __future__ import annotations

import torch

from lightning_budget.allocation.constrained.rows import Rows
from lightning_budget.allocation.constrained.sample import _chances, draw
from tests.allocation.constrained.constrained_reference import heavy_problem, moved, random_problem

USERS = 5000


def test_light_spend_is_drawn_with_equal_chances_and_no_look_at_all() -> None:
    sample = draw(Rows(random_problem(0, USERS, 4, 3)), 500)
    assert sample.passes == 0
    assert len(sample.users.unique()) == 500
    assert set(sample.chance.tolist()) == {0.1}


def test_all_users_are_certain() -> None:
    sample = draw(Rows(heavy_problem(0, 300)), 300)
    assert sorted(sample.users.tolist()) == list(range(300))
    assert sample.chance.tolist() == [1.0] * 300


def test_chances_are_in_proportion_to_size_and_add_up() -> None:
    size = (1 - torch.rand(USERS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).pow(-1 / 1.2)
    chance = _chances(size, 500)
    assert abs(float(chance.sum()) - 500) < 1e-9
    certain = chance == 1
    assert 10 < int(certain.sum()) < 200
    assert float(size[certain].min()) > float(size[~certain].max())
    ratio = chance[~certain] / size[~certain]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-12, atol=0)


def test_large_users_are_in_and_totals_are_met() -> None:
    problem = heavy_problem(1, USERS)
    rows = Rows(problem)
    sample = draw(rows, 1000)
    assert sample.passes == 1
    assert len(sample.users.unique()) == 1000
    largest = set(problem.cost[:, -1].topk(20).indices.tolist())
    assert largest <= set(sample.users.tolist())
    # Horvitz and Thompson's estimate of every limit's total, under n/N of the limit.
    block, share = sample.block(rows), 1000 / USERS
    every = rows.block(slice(None))
    for arm in range(5):
        estimate = block.used(block.usage[:, arm]) / share
        total = every.used(every.usage[:, arm])
        assert bool(((estimate - total).abs() <= 0.08 * total.abs()).all())
    torch.testing.assert_close(block.limit, rows.limit * share)


def test_the_order_of_rows_does_not_matter() -> None:
    problem = heavy_problem(2, USERS)
    order = torch.randperm(USERS, generator=torch.Generator().manual_seed(3))
    one, two = draw(Rows(problem), 400), draw(Rows(moved(problem, order)), 400)
    assert one.users.tolist() == order[two.users].tolist()
    assert one.chance.tolist() == two.chance.tolist()
