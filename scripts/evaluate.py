"""Repeat the table of a run for checkpoints on any split: ``python scripts/evaluate.py ckpt=runs/…/best.ckpt``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig, ListConfig
from rich.progress import track

from datamodules import RCTDataModule
from lightning_budget import cli
from lightning_budget.batch import ResponsePrediction
from lightning_budget.cli.build import build, check_can_be_made, quiet, run_folder_of, saved_config
from lightning_budget.errors import InputError
from lightning_budget.report import compare, print_report, write_report
from lightning_budget.table import RCTTable
from lightning_budget.training.export import load_model, load_schema
from lightning_budget.training.predict import predict_batches


def checkpoint_paths(ckpt: Any) -> list[Path]:
    """One path or a list of them."""
    paths = [Path(p).expanduser().absolute() for p in (ckpt if isinstance(ckpt, ListConfig) else [ckpt])]
    if len(set(paths)) < len(paths):
        raise InputError(f"ckpt={[str(p) for p in paths]}", "different checkpoints", "name each once")
    return paths


def method_names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: a phase's name, else folder and file."""
    phases = [p.parent.name for p in paths]
    if len(set(phases)) == len(paths):
        return phases
    return [f"{p.parent.name}/{p.stem}" if p.parent.name != p.anchor else p.stem for p in paths]


def load_split(config: DictConfig, paths: list[Path], split: str) -> tuple[RCTDataModule, RCTTable]:
    """The split to evaluate on, encoded as the first checkpoint was trained."""
    schema = load_schema(paths[0])
    for path in paths[1:]:
        if load_schema(path) != schema:
            raise InputError(
                f"{str(path)!r} has another data schema", f"that of {str(paths[0])!r}", "evaluate it alone"
            )
    datamodule = build(config)
    if hasattr(datamodule, "use_schema"):
        datamodule.use_schema(schema)
    table = datamodule.split(split)
    if datamodule.schema != schema:
        raise InputError(
            f"{str(paths[0])!r} was trained on other columns, arms or tables than this data set has",
            "a checkpoint of the same data schema",
            "give data=… as in its training",
        )
    return datamodule, table


def predict(path: Path, datamodule: RCTDataModule, table: RCTTable, name: str) -> ResponsePrediction:
    """Predict the split with one checkpoint, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(path, device)

    class OfBatch(torch.nn.Module):
        def forward(self, batch: Any) -> ResponsePrediction:
            return model(batch.dense, batch.sparse)

    batches = datamodule.table_dataloader(table)
    return predict_batches(OfBatch(), track(batches, f"Predicting with {name}", len(batches)), len(table), device)


@cli.main("evaluate")
def main(cfg: DictConfig) -> None:
    """Table, report.json and curves.png of checkpoints on a split."""
    quiet()
    paths = checkpoint_paths(cfg.ckpt)
    folder = Path(cfg.run_dir or paths[0].parent / f"evaluation-{cfg.split}").expanduser().absolute()
    check_can_be_made(folder, "run_dir")
    run = None if cfg.data is not None else saved_config(run_folder_of(paths[0]))
    config = cast("DictConfig", cfg.data if run is None else run.data)
    datamodule, table = load_split(config, paths, cfg.split)
    names = method_names(paths)
    predictions = {n: predict(p, datamodule, table, n) for n, p in zip(names, paths, strict=True)}
    budgets = cfg.budgets or (run.budgets if run is not None else [0.05, 0.1, 0.2, 0.3, 0.5])
    report = compare(table, datamodule.schema, predictions, list(budgets), resamples=cfg.resamples, seed=cfg.seed)
    write_report(report, folder)
    print_report(report)
    print(f"Report: {folder}")


if __name__ == "__main__":
    main()
