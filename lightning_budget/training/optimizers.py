"""Which parameters are updated where: tables inside backward, the rest by an ordinary optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import (
    _apply_optimizer_in_backward as apply_optimizer_in_backward,
)
from torchrec.optim.optimizers import PartialRowWiseAdam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from lightning_budget.errors import InputError
from lightning_budget.models.heads import LinearHeads


@dataclass(frozen=True)
class EmbeddingOptimizer:
    """An optimizer that FBGEMM runs inside backward.

    Attributes:
        kind: class that tags the parameters; defaults: its arguments besides the rate.
        on_cpu: whether FBGEMM has it on CPU.
        state: ``none``; ``element``: numbers per weight alone; ``row``: also or only numbers per row.
    """

    kind: type[torch.optim.Optimizer]
    defaults: dict[str, Any]
    on_cpu: bool
    state: str


EMBEDDING_OPTIMIZERS = {
    "rowwise_adagrad": EmbeddingOptimizer(RowWiseAdagrad, {"eps": 1e-8}, True, "row"),
    "adagrad": EmbeddingOptimizer(torch.optim.Adagrad, {"eps": 1e-8}, True, "element"),
    "sgd": EmbeddingOptimizer(torch.optim.SGD, {}, True, "none"),
    "adam": EmbeddingOptimizer(torch.optim.Adam, {"eps": 1e-8}, False, "element"),
    "partial_rowwise_adam": EmbeddingOptimizer(PartialRowWiseAdam, {"eps": 1e-8}, False, "row"),
}
"""Optimizers of embedding tables by the name that configs and checkpoints use."""


def embedding_optimizer(name: str) -> EmbeddingOptimizer:
    """Look an optimizer up.

    Raises:
        InputError: if there is none of that name.
    """
    if name not in EMBEDDING_OPTIMIZERS:
        raise InputError(
            f"model.optimizer.embedding_optimizer={name!r}", ", ".join(EMBEDDING_OPTIMIZERS), "choose one of them"
        )
    return EMBEDDING_OPTIMIZERS[name]


def step_in_backward(tables: nn.Module, lr: float, name: str = "rowwise_adagrad") -> None:
    """Tag embedding tables to be updated as their gradients arrive.

    No gradient of a table is ever materialised. Once sharded, FBGEMM's fused kernel takes over the tag.

    Raises:
        InputError: if no optimizer has that name.
    """
    optimizer = embedding_optimizer(name)
    apply_optimizer_in_backward(optimizer.kind, tables.parameters(), {"lr": lr, **optimizer.defaults})


def optimizer_in_backward(parameter: nn.Parameter) -> EmbeddingOptimizer | None:
    """The optimizer a table is tagged with; ``None``: untagged, or with one that is not listed here."""
    kinds = getattr(parameter, "_optimizer_classes", [None])
    return next((o for o in EMBEDDING_OPTIMIZERS.values() if o.kind is kinds[0]), None)


def check_runs_on(parameter: nn.Parameter, table: str, device: torch.device) -> None:
    """Refuse a table's optimizer where FBGEMM has none.

    Raises:
        InputError: for the Adam family on CPU.
    """
    optimizer = optimizer_in_backward(parameter)
    if optimizer is not None and device.type == "cpu" and not optimizer.on_cpu:
        name = next(k for k, o in EMBEDDING_OPTIMIZERS.items() if o is optimizer)
        raise InputError(
            f"table {table!r} is to be updated by {name!r} on CPU, where FBGEMM does not have it",
            ", ".join(k for k, o in EMBEDDING_OPTIMIZERS.items() if o.on_cpu) + " (the Adam family needs a GPU)",
            "set model.optimizer.embedding_optimizer=rowwise_adagrad",
        )


def dense_parameters(module: nn.Module) -> list[nn.Parameter]:
    """What ``configure_optimizers`` may take: the trainable parameters that are not updated inside backward."""
    return [p for p in module.parameters() if p.requires_grad and not hasattr(p, "_in_backward_optimizers")]


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of :func:`dense_parameters` for a decoupled decay (Loshchilov, Hutter 2019, arXiv:1711.05101).

    Weights of layers decay; biases, single numbers and the weights of a linear part (``wide``) do not. One group where
    nothing decays.
    """
    dense = dense_parameters(module)
    if weight_decay == 0:
        return [{"params": dense, "weight_decay": 0.0}]
    linear = {id(p) for part in module.modules() if isinstance(part, LinearHeads) for p in part.parameters()}
    biases = {id(p) for name, p in module.named_parameters() if name.rpartition(".")[2] == "bias"}
    kept = [id(p) in linear or id(p) in biases or p.dim() < 2 for p in dense]
    return [
        {"params": [p for p, keep in zip(dense, kept, strict=True) if keep == group], "weight_decay": decay}
        for group, decay in ((False, weight_decay), (True, 0.0))
    ]
