"""Every learner by its entry in the registry, far from its start, on a batch of its own."""

from __future__ import annotations

from typing import Any

import torch
from random_trials import random_batch, random_schema, random_statistics

from lightning_budget.batch import RCTBatch
from lightning_budget.models.learner import Learner
from lightning_budget.models.registry import MODELS, build_model

SIZES: dict[str, Any] = {"embedding_dim": 3, "dense_hidden": [6], "trunk_hidden": [10, 7], "head_hidden": 4}
HEADS: list[dict[str, Any]] = [
    {"backbone": "dcn_v2", "cross_rank": 2},
    {"value_head": "funnel", "cost_head": "funnel"},
    {"value_head": "funnel", "cost_head": "on_conversion"},
    {"value_head": "ziln", "backbone": "dcn_v2"},
    {"value_head": "monotone", "cost_head": "monotone"},
    {"share_doses": 2},
    {"wide": True, "value_head": "auto", "cost_head": "auto"},
    {"wide": True, "share_doses": 1},
]
"""Options that several learners have; which of them refuses which, :func:`allowed` knows."""
REFUSED = {
    "s_learner": {"share_doses"},
    "t_learner": {"share_doses"},
    "descn": {"value_head=monotone", "cost_head=on_conversion", "wide"},
    "direct_ranking": {"value_head", "wide"},
}
CASES = [(name, {}) for name in MODELS] + [
    (name, options)
    for name in MODELS
    for options in HEADS
    if not REFUSED.get(name, set()) & {*options, *(f"{k}={v}" for k, v in options.items())}
]
OWN = {
    "value_head": "funnel",
    "cost_head": "on_conversion",
    "share_doses": 1,
    "sensitivity": True,
    "user_history": True,
}
CASES.append(("described_tarnet", OWN))
IDS = ["-".join([name, *map(str, options.values())]) for name, options in CASES]


def build(
    name: str, treatments: int = 3, seed: int = 0, schema: dict[str, Any] | None = None, **options: Any
) -> Learner:
    """An untrained learner of small widths."""
    torch.manual_seed(seed)
    config = {"name": name, **SIZES, **options}
    return build_model(config, random_schema(treatments, **(schema or {})), random_statistics(treatments))


def shaken(model: Learner) -> Learner:
    """The same learner with weights for which users, ids and arms all make a difference."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name == "user_history.effects":
                buffer.normal_(0, 0.3)
            elif name == "user_history.counts":
                buffer.random_(0, 50)
    return model.eval()


def encoded(model: Learner, batch: RCTBatch) -> torch.Tensor:
    """Features of the batch's users, as the trunk gets them."""
    assert model.sparse_arch is not None
    return model.encode(model.standardised(batch.dense), model.sparse_arch(batch.sparse))


def total_loss(model: Learner, batch: RCTBatch) -> torch.Tensor:
    """Everything that a learner is trained by: factual losses, its own, and those of its value's head."""
    output = model.outputs(batch.dense, batch.sparse)
    given = batch.treatment.unsqueeze(1)
    value, cost = model.value_losses(batch, output), model.cost_losses(batch, output)
    if value is None:
        value = (output.prediction.value.gather(1, given).squeeze(1) - batch.value).square()
    if cost is None:
        cost = (output.prediction.cost.gather(1, given).squeeze(1) - batch.cost).square()
    return (value + cost + sum(model.extra_losses(batch, output).values())).mean()


def trial(rows: int, treatments: int = 3, seed: int = 0) -> RCTBatch:
    """Rows that all arms have."""
    batch = random_batch(rows, treatments, seed)
    batch.treatment.copy_(torch.arange(rows) % treatments)
    return batch
