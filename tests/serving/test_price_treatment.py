"""The traceable rule gives the same treatments as the allocation's policy, ties included."""

from __future__ import annotations

import pytest
import torch

from lightning_budget.allocation import policy_treatment
from lightning_budget.serving import price_treatment

MULTIPLIERS = [0.0, 0.5, 1.0, 1 / 3, 2.0, 7.5, float("inf")]


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("arms", [2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_grid_where_many_users_have_ties(multiplier: float, arms: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(arms)
    value, cost = (torch.randint(-2, 3, (3000, arms), generator=g).to(dtype) for _ in range(2))
    got = price_treatment(value, cost, torch.tensor(multiplier, dtype=torch.float64))
    assert torch.equal(got, policy_treatment(value, cost, multiplier))
    score = value.double() - min(multiplier, 1e9) * cost.double()
    tied = (score == score.amax(1, keepdim=True)).sum(1) > 1
    assert tied.double().mean() > 0.02


def test_at_every_user_s_own_breakpoint() -> None:
    g = torch.Generator().manual_seed(1)
    value, cost = torch.rand(300, 4, generator=g), torch.rand(300, 4, generator=g)
    gain, price = (x[:, 2].double() - x[:, 1].double() for x in (value, cost))
    for i in range(300):
        multiplier = float(gain[i] / price[i])
        one = slice(i, i + 1)
        got = price_treatment(value[one], cost[one], torch.tensor(multiplier, dtype=torch.float64))
        assert torch.equal(got, policy_treatment(value[one], cost[one], multiplier))


def test_ties_go_to_the_cheaper_arm_then_to_the_lower_index() -> None:
    value = torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0], [1.0, 2.0, 2.0]])
    cost = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert price_treatment(value, cost, torch.tensor(1.0)).tolist() == [2, 0, 0]
    assert price_treatment(value, cost, torch.tensor(0.5)).tolist() == [0, 0, 1]


def test_no_users() -> None:
    empty = torch.zeros(0, 3)
    assert price_treatment(empty, empty, torch.tensor(1.0)).shape == (0,)
