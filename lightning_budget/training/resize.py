"""Extend or slice a checkpoint to other embedding tables and treatments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_budget.atomic import atomic_path
from lightning_budget.errors import InputError
from lightning_budget.models.learners import decided_config
from lightning_budget.schema import DataSchema, SparseFeature
from lightning_budget.statistics import DataStatistics
from lightning_budget.training.checkpoint import FUSED_OPTIMIZER_KEY, OBSERVED
from lightning_budget.training.export import PREFIX, read_checkpoint
from lightning_budget.training.module import FIRST_STEP, BudgetModule
from lightning_budget.training.optimizers import decay_groups

Kept = tuple[Tensor, Tensor]
"""Positions in the new tensor and, for each, the position in the old one that it takes over."""


def resize_checkpoint(source: str | Path, output: str | Path, schema: DataSchema, statistics: DataStatistics) -> None:
    """Write a checkpoint for a new schema that keeps what the old one knows.

    Embedding rows are taken over by label, or by number where a feature has no vocabulary; treatments by name. New rows
    and treatments start as an untrained model's do; optimizer states follow, zero for what is new. Tables of hashed and
    managed features keep their size: in another, labels would have other rows. The result is one file, whatever the
    source was.

    Args:
        source: checkpoint of either format.
        output: file to write.
        schema: of the new data; the same dense features, id features and kinds of outcome.
        statistics: of the new data's training split; used for new treatments.

    Raises:
        InputError: if the checkpoint cannot be read, or differs in more than table sizes and treatments.
    """
    checkpoint = dict(read_checkpoint(source))
    hyper = dict(checkpoint["hyper_parameters"])
    old = DataSchema.from_dict(hyper["schema"])
    _check(old, schema, source)
    arms = _kept([old.treatments.index(a) if a in old.treatments else None for a in schema.treatments])
    hyper["model"] = decided_config(hyper["model"], old, hyper["statistics"])
    hyper["schema"] = schema.to_dict()
    hyper["statistics"] = _merge(DataStatistics.from_dict(hyper["statistics"]), statistics, arms).to_dict()
    fresh = BudgetModule(**{k: hyper[k] for k in signature(BudgetModule).parameters if k in hyper})
    fresh.configure_model()
    assert fresh.net is not None
    learner = fresh.net
    if learner.joins_arms and old.treatments != schema.treatments:
        raise InputError(
            f"{source}: its heads build on the order of its arms {list(old.treatments)}, the new schema's are "
            f"{list(schema.treatments)}",
            "the same treatments under share_doses and monotone heads",
            "train anew",
        )

    rows = {new.name: _kept(_old_rows(was, new)) for was, new in zip(old.sparse, schema.sparse, strict=True)}
    k_old, k_new = len(old.treatments), len(schema.treatments)

    def adapt(name: str, tensor: Tensor, start: Tensor) -> Tensor:
        if (table := _table(name)) is not None:
            return _take(tensor, start, rows[table], len(tensor), len(start))
        if (feature := learner.feature_of(name.removeprefix(PREFIX))) is not None:
            if name.endswith(".effects"):
                # Earlier ones have none on payment, which no dose bears on, as it does on sizes.
                tensor = pad(tensor, (0, start.shape[1] - tensor.shape[1]))
                if old.treatments != schema.treatments:
                    tensor = tensor * torch.tensor([0.0, 0.0, 1.0])
            return _take(tensor, start, rows[feature], len(tensor), len(start))
        if learner.is_by_arm(name.removeprefix(PREFIX)):
            return _take(tensor, start, arms, k_old, k_new)
        return start if name.endswith(".known_cost") else tensor

    new_state = fresh.state_dict()
    checkpoint["state_dict"] = {n: adapt(n, t, new_state[n]) for n, t in checkpoint["state_dict"].items()}
    sizes = {f.name: f.num_embeddings for f in schema.sparse}
    fused = checkpoint.get(FUSED_OPTIMIZER_KEY, {})
    checkpoint[FUSED_OPTIMIZER_KEY] = {
        n: adapt(n, t, t.new_zeros(sizes[str(_table(n))], *t.shape[1:])) if t.dim() else t for n, t in fused.items()
    }
    checkpoint["optimizer_states"] = [
        _adapt_dense(state, fresh, adapt) for state in checkpoint.get("optimizer_states", [])
    ]
    checkpoint["hyper_parameters"] = hyper
    checkpoint.pop(FIRST_STEP, None)  # fitted to other arms and tables: training fits it anew
    checkpoint.pop(OBSERVED, None)  # of other tables; the next epoch observes its own
    with atomic_path(output) as path:
        torch.save(checkpoint, path)


def _check(old: DataSchema, new: DataSchema, source: str | Path) -> None:
    for name in ("dense", "value_kind", "cost_kind"):
        if getattr(old, name) != getattr(new, name):
            raise InputError(
                f"{source}: its {name} is {getattr(old, name)}, the new schema's {getattr(new, name)}",
                "other table sizes and treatments only",
                "train anew",
            )
    if [f.name for f in old.sparse] != [f.name for f in new.sparse]:
        raise InputError(
            f"{source}: its id features are {[f.name for f in old.sparse]}, the new schema's "
            f"{[f.name for f in new.sparse]}",
            "the same features in the same order",
            "train anew",
        )
    for was, is_ in zip(old.sparse, new.sparse, strict=True):
        if (was.ids, is_.ids) != ("listed", "listed") and was != is_:
            raise InputError(
                f"{source}: its feature {was.name!r} is {was.ids} with {was.num_embeddings:,} rows, the new schema's "
                f"{is_.ids} with {is_.num_embeddings:,}",
                "the same rows for hashed and managed features, whose labels would otherwise have others",
                "keep the size, or train anew",
            )


def _old_rows(old: SparseFeature, new: SparseFeature) -> list[int | None]:
    if old.vocabulary is None or new.vocabulary is None:
        return [i if i < old.num_embeddings else None for i in range(new.num_embeddings)]
    row = {label: i + 1 for i, label in enumerate(old.vocabulary)}
    return [0, *(row.get(label) for label in new.vocabulary)]


def _kept(old: list[int | None]) -> Kept:
    pairs = [(i, j) for i, j in enumerate(old) if j is not None]
    return torch.tensor([i for i, _ in pairs]), torch.tensor([j for _, j in pairs])


def _take(tensor: Tensor, start: Tensor, kept: Kept, old: int, new: int) -> Tensor:
    """``start`` with blocks taken over; the leading dimension holds ``old`` of them before and ``new`` after."""
    result, (to, of) = start.clone(), kept
    result.view(new, -1)[to] = tensor.reshape(old, -1)[of]
    return result


def _table(name: str) -> str | None:
    """The table that a tensor belongs to, weight or optimizer state."""
    _, bags, rest = name.partition(".embedding_bags.")
    return rest.partition(".")[0] if bags else None


def _merge(old: DataStatistics, new: DataStatistics, arms: Kept) -> DataStatistics:
    by_arm = {}
    for name in ("value_mean", "cost_mean", "value_conversion", "cost_conversion", "unconverted_cost"):
        values = list(getattr(new, name))
        if not (values and getattr(old, name)):  # not counted
            by_arm[name] = ()
            continue
        for to, of in zip(*(x.tolist() for x in arms), strict=True):
            values[to] = getattr(old, name)[of]
        by_arm[name] = tuple(values)
    return replace(old, arm_share=new.arm_share, **by_arm)


def _adapt_dense(
    state: Mapping[str, Any], fresh: BudgetModule, adapt: Callable[[str, Tensor, Tensor], Tensor]
) -> dict[str, Any]:
    names = {id(p): n for n, p in fresh.named_parameters()}
    groups = decay_groups(fresh, fresh.hparams["weight_decay"])
    if [len(group["params"]) for group in state["param_groups"]] != [len(group["params"]) for group in groups]:
        raise InputError(
            f"a checkpoint whose optimizer has {len(state['param_groups'])} groups of parameters",
            f"{len(groups)}, as the model's",
            "resize it with the release that wrote it",
        )
    trained = [(names[id(p)], p) for group in groups for p in group["params"]]
    adapted = {}
    for index, entries in state["state"].items():
        name, parameter = trained[index]
        adapted[index] = {
            k: adapt(name, v, torch.zeros_like(parameter)) if isinstance(v, Tensor) and v.dim() else v
            for k, v in entries.items()
        }
    return {**state, "state": adapted}
