"""A scalar with a gradient that was found elsewhere, as autograd sees it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_budget.losses.surrogate import with_gradient


def pieces(kind: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    value, cost, d_value, d_cost = torch.randn(4, 6, 3, generator=g, dtype=torch.float64)
    return value.to(kind).requires_grad_(), cost.to(kind).requires_grad_(), d_value, d_cost


def test_value_and_gradient_are_those_given() -> None:
    value, cost, d_value, d_cost = pieces()
    goal = torch.tensor(2.5, dtype=torch.float64)
    term = with_gradient(value, cost, goal, d_value, d_cost)
    assert term.item() == 2.5
    assert term.dtype == torch.float64
    found = torch.autograd.grad(term, [value, cost])
    assert torch.equal(found[0], d_value)
    assert torch.equal(found[1], d_cost)
    term.detach().add_(1)
    assert goal.item() == 2.5


def test_one_backward_carries_it_beside_another_loss() -> None:
    """Equal to the surrogate (stopgrad(d)·x).sum(), scaled, plus the other loss, through a layer below."""
    _, _, d_value, d_cost = pieces()
    dense = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    layer = torch.nn.Linear(4, 6, dtype=torch.float64)

    def gradient(plainly: bool) -> Tensor:
        layer.zero_grad()
        value, cost = layer(dense).chunk(2, dim=1)
        if plainly:
            term = (d_value * value).sum() + (d_cost * cost).sum()
        else:
            term = with_gradient(value, cost, torch.ones((), dtype=torch.float64), d_value, d_cost)
        (value.square().mean() - 0.3 * term).backward()
        assert layer.weight.grad is not None
        return layer.weight.grad.clone()

    torch.testing.assert_close(gradient(False), gradient(True), rtol=1e-12, atol=0)


def test_the_graph_can_be_used_again() -> None:
    value, cost, d_value, d_cost = pieces()
    term = with_gradient(value, cost, torch.ones((), dtype=torch.float64), d_value, d_cost)
    for factor in (1.0, 2.0):
        (found,) = torch.autograd.grad(factor * term, [value], retain_graph=True)
        assert torch.equal(found, factor * d_value)
    (term + term).backward()
    assert torch.equal(cost.grad, 2 * d_cost)  # type: ignore[arg-type]


def test_only_one_of_the_two_may_want_a_gradient() -> None:
    value, cost, d_value, d_cost = pieces()
    term = with_gradient(value, cost.detach(), torch.ones((), dtype=torch.float64), d_value, d_cost)
    term.backward()
    assert torch.equal(value.grad, d_value)  # type: ignore[arg-type]
    assert not with_gradient(value.detach(), cost.detach(), term.detach(), d_value, d_cost).requires_grad


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_have_the_type_of_the_predictions(kind: torch.dtype) -> None:
    value, cost, d_value, d_cost = pieces(kind)
    term = with_gradient(value, cost, torch.tensor(0.123456789), d_value.float(), d_cost.float())
    assert term.dtype == torch.float32
    assert term.item() == pytest.approx(0.123456789, rel=1e-7)
    term.backward()
    assert torch.equal(value.grad, d_value.float().to(kind))  # type: ignore[arg-type]
    assert torch.equal(cost.grad, d_cost.float().to(kind))  # type: ignore[arg-type]


def test_a_loss_scale_lifts_small_derivatives_above_what_float16_can_hold() -> None:
    value, cost, _, _ = pieces(torch.float16)
    small = torch.full((6, 3), 1e-9)
    (2.0**16 * with_gradient(value, cost, torch.ones(()), small, small)).backward()
    torch.testing.assert_close(value.grad, (small * 2**16).half())


def test_what_float16_cannot_hold_stays_at_its_largest_number_but_a_loss_scale_overflows() -> None:
    value, cost, _, _ = pieces(torch.float16)
    large = torch.full((6, 3), -1e6)
    term = with_gradient(value, cost, torch.ones(()), large, large)
    (plain,) = torch.autograd.grad(term, [value], retain_graph=True)
    assert (plain == -torch.finfo(torch.float16).max).all()
    (scaled,) = torch.autograd.grad(4 * term, [value])
    assert scaled.isinf().all()
    lost = with_gradient(value, cost, torch.ones(()), large * torch.nan, large)
    assert torch.autograd.grad(lost, [value])[0].isnan().all()
