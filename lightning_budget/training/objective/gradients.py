"""How goal and prediction loss pull at the predictions: sizes of their gradients and the angle between them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_budget.batch import ResponsePrediction
from lightning_budget.training.objective.ranks import sum_over_ranks

Loss = Callable[[ResponsePrediction], Tensor]


def gradient_angle(prediction: ResponsePrediction, loss: Loss, goal: Loss, scales: tuple[float, float]) -> Tensor:
    """Norms of both gradients with respect to the predictions of the global batch, and the cosine between them.

    By predictions and not by weights: that needs no second backward through the model, which would be a second step of
    the tables' optimizers. The gradients are those of standardised outcomes, ``v̂ / value scale`` and
    ``ĉ / cost scale``, so that value and cost can be added. Descent on the loss and ascent on the goal agree at
    cosine 1.

    Args:
        prediction: ``[n, K]`` of this rank; loss, goal: of predictions, means over this rank's rows.
        scales: of value and cost.

    Returns:
        ``[3]`` float64: norm of the goal's gradient, norm of the loss's, cosine (0 where either is 0).
    """
    leaves = [x.detach().float().requires_grad_() for x in (prediction.value, prediction.cost)]
    with torch.enable_grad():
        gradients = [torch.autograd.grad(f(ResponsePrediction(*leaves)), leaves) for f in (goal, loss)]
    up, down = (torch.cat([s * g.flatten() for s, g in zip(scales, pair, strict=True)]).double() for pair in gradients)
    ranks = sum_over_ranks(torch.ones_like(up[:1]))
    products = sum_over_ranks(torch.stack([up @ up, down @ down, -(up @ down)])) / ranks.square()
    norms = products[:2].sqrt()
    size = norms.prod()
    cosine = torch.where(size > 0, products[2] / size.where(size > 0, 1.0), 0.0)
    return torch.cat([norms, cosine[None]])
