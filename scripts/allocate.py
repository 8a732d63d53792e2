"""One treatment per user within a budget: ``python scripts/allocate.py ckpt=… budget=… input=… output=…``."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow as pa
import torch
from omegaconf import DictConfig
from rich.progress import track

from lightning_budget import cli
from lightning_budget.allocation import Allocation, allocate
from lightning_budget.batch import ResponsePrediction
from lightning_budget.cli.build import check_can_be_made, quiet
from lightning_budget.errors import InputError
from lightning_budget.files import write_parquet
from lightning_budget.models.tarnet import TARNet
from lightning_budget.parquet import read_users
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable
from lightning_budget.training.export import load_model, load_schema

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")


def check_request(cfg: DictConfig) -> None:
    """Refuse what would only fail after the work is done."""
    if not (math.isfinite(cfg.budget) and cfg.budget > 0):
        raise InputError(f"budget={cfg.budget:g}", "above 0, in currency for all users together", "give budget=1000")
    if cfg.batch_size < 1:
        raise InputError(f"batch_size={cfg.batch_size}", "at least 1", "16384 is the default")
    output = Path(cfg.output).expanduser().absolute()
    if output.suffix != ".parquet":
        raise InputError(
            f"output={str(output)!r}", "a file ending in .parquet", f"output={output.with_suffix('.parquet')}"
        )
    check_can_be_made(output.parent, "output")
    if cfg.accelerator not in ACCELERATORS:
        raise InputError(f"accelerator={cfg.accelerator!r}", ", ".join(ACCELERATORS), "choose one of the allowed")
    if cfg.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(f"accelerator={cfg.accelerator!r} without a CUDA device", "auto, cpu", "use accelerator=auto")


@torch.no_grad()
def predict(model: TARNet, users: RCTTable, batch_size: int, device: torch.device) -> ResponsePrediction:
    """Value and cost ``[N, K]`` of every user, in the order of the file."""
    parts = []
    for index in track(torch.arange(len(users)).split(batch_size), "Predicting"):
        batch = users.batch(index).to(device)
        parts.append(model(batch.dense, batch.sparse))
    return ResponsePrediction(torch.cat([p.value for p in parts]).cpu(), torch.cat([p.cost for p in parts]).cpu())


def as_parquet(allocation: Allocation, prediction: ResponsePrediction, ids: pa.Array, schema: DataSchema) -> pa.Table:
    """The columns of the output file; the certificate travels in its metadata."""
    treatment = allocation.assignment.long()
    chosen = treatment.unsqueeze(1)
    names = pa.array(schema.treatments)
    table = pa.table(
        {
            "user_id": ids,
            "treatment": pa.array(treatment.numpy()),
            "treatment_name": pa.DictionaryArray.from_arrays(pa.array(treatment.int().numpy()), names),
            "value": pa.array(prediction.value.gather(1, chosen).squeeze(1).numpy()),
            "cost": pa.array(prediction.cost.gather(1, chosen).squeeze(1).numpy()),
        }
    )
    return table.replace_schema_metadata({"certificate": json.dumps(allocation.certificate())})


@cli.main("allocate")
def main(cfg: DictConfig) -> None:
    """Predict, allocate, write."""
    quiet()
    check_request(cfg)
    schema = load_schema(cfg.ckpt)
    use_cuda = torch.cuda.is_available() and cfg.accelerator in ("auto", "gpu", "cuda")
    device = torch.device("cuda" if use_cuda else "cpu")
    model = load_model(cfg.ckpt, device)
    users, ids = read_users(cfg.input, schema)
    prediction = predict(model, users, cfg.batch_size, device)
    allocation = allocate(prediction.value, prediction.cost, cfg.budget)
    output = Path(cfg.output).expanduser().absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(as_parquet(allocation, prediction, ids, schema), output)
    except OSError as e:
        raise InputError(
            f"output={str(output)!r}: {e.strerror or e}",
            "a file in a folder that can be written",
            "give another output=…",
        ) from e
    counts = torch.bincount(allocation.assignment.long(), minlength=schema.num_treatments).tolist()
    print("Users per treatment: " + ", ".join(f"{n} {c:,}" for n, c in zip(schema.treatments, counts, strict=True)))
    for key, number in allocation.certificate().items():
        print(f"  {key:13} {number:,.6g}")
    print(f"Allocation: {output}")


if __name__ == "__main__":
    main()
