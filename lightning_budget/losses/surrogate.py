"""A value whose gradient was found elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, cost: Tensor, goal: Tensor, d_value: Tensor, d_cost: Tensor) -> Tensor:
        ctx.save_for_backward(d_value.to(value.dtype), d_cost.to(cost.dtype))
        return goal.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        d_value, d_cost = ctx.saved_tensors
        (upstream,) = outputs
        return upstream * d_value, upstream * d_cost, None, None, None


def with_gradient(value: Tensor, cost: Tensor, goal: Tensor, d_value: Tensor, d_cost: Tensor) -> Tensor:
    """The scalar ``goal``, with ``d_value`` and ``d_cost`` as its derivatives by the predictions.

    Equal to the surrogate ``(stopgrad(d_value)·v̂ + stopgrad(d_cost)·ĉ).sum()`` in its gradient, and to the goal in
    its value, so that one backward carries both this and the prediction loss.

    Args:
        value, cost: ``[n, K]`` predictions; goal: scalar; d_value, d_cost: ``[n, K]``.
    """
    result = _WithGradient.apply(value, cost, goal, d_value, d_cost)
    assert isinstance(result, Tensor)
    return result
