"""Whether a checkpoint fits the model that is to go on from it, and what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_budget.errors import InputError
from lightning_budget.models.learners import complete_config, decided_config
from lightning_budget.schema import DataSchema
from lightning_budget.training.export import read_checkpoint
from lightning_budget.training.module import BudgetModule

RESIZE = "lightning_budget.training.resize.resize_checkpoint(path, output, schema, statistics)"


def check_same_model(path: Path, module: BudgetModule) -> None:
    """Refuse a checkpoint whose data, model or embedding optimizer differ from the module's.

    Raises:
        InputError: naming what differs, and how a checkpoint of other tables or treatments is extended or sliced.
    """
    saved = read_checkpoint(path, tensors=False)["hyper_parameters"]
    # By way of the schema: an older checkpoint does not name what has come since.
    saved = {**saved, "schema": DataSchema.from_dict(dict(saved["schema"])).to_dict()}
    _check_tables(path, module.schema.to_dict(), saved["schema"])
    schema = DataSchema.from_dict(saved["schema"])
    saved["model"] = complete_config(decided_config(saved["model"], schema, saved["statistics"]))
    ours = {**module.hparams, "model": complete_config(module.hparams["model"])}
    theirs = {"embedding_optimizer": "rowwise_adagrad", **saved}
    for name in ("schema", "model", "embedding_optimizer"):
        mine, other = ours[name], theirs[name]
        if not isinstance(mine, Mapping):
            mine, other = {"": mine}, {"": other}
        for key in mine.keys() | other.keys():
            if mine.get(key) != other.get(key):
                what = f"{name}.{key}".rstrip(".")
                raise InputError(
                    f"{path}: its {what} is {_short(other.get(key))}, this run's {_short(mine.get(key))}",
                    "a checkpoint of the same data schema and model",
                    "drop the overrides that differ, or start without ckpt_path",
                )


def _check_tables(path: Path, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    if len(mine["treatments"]) != len(theirs["treatments"]):
        raise InputError(
            f"{path}: it has {len(theirs['treatments'])} treatments {_short(list(theirs['treatments']))}, "
            f"this run {len(mine['treatments'])} {_short(list(mine['treatments']))}",
            "as many treatments",
            f"extend or slice it: {RESIZE}",
        )
    rows = {f["name"]: f["num_embeddings"] for f in theirs["sparse"]}
    for feature in mine["sparse"]:
        name, n = feature["name"], feature["num_embeddings"]
        if name in rows and rows[name] != n:
            raise InputError(
                f"{path}: its table {name!r} has {rows[name]:,} rows, this run's {n:,}",
                "tables of the same size",
                f"{'extend' if n > rows[name] else 'slice'} it: {RESIZE}",
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
