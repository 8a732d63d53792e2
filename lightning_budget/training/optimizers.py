"""Which parameters are updated where: tables inside backward, the rest by an ordinary optimizer."""

from __future__ import annotations

from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad


def step_in_backward(tables: nn.Module, lr: float) -> None:
    """Tag embedding tables to be updated by row-wise Adagrad as their gradients arrive.

    No gradient of a table is ever materialised; the state is one number per row. Once sharded, FBGEMM's fused kernel
    takes over the tag.
    """
    apply_optimizer_in_backward(RowWiseAdagrad, tables.parameters(), {"lr": lr, "eps": 1e-8})


def dense_parameters(module: nn.Module) -> list[nn.Parameter]:
    """What ``configure_optimizers`` may take: the trainable parameters that are not updated inside backward."""
    return [p for p in module.parameters() if p.requires_grad and not hasattr(p, "_in_backward_optimizers")]
