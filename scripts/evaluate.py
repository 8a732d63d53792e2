"""Judge predictions on a randomized trial: ``python scripts/evaluate.py ckpt=runs/…/best.ckpt``.

Predictions are those of checkpoints on a split of their data, and of any other tool from Parquet files:
``python scripts/evaluate.py data=table data.path=… predictions={causalml: preds.parquet} split=all``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.progress import track

from datamodules import RCTDataModule
from datamodules.base import SPLITS
from datamodules.table_rct import TableRCTDataModule
from lightning_budget import cli
from lightning_budget.batch import ResponsePrediction
from lightning_budget.cli.build import build, check_can_be_made, quiet, run_folder_of, saved_config
from lightning_budget.data.trial import read_trial
from lightning_budget.errors import InputError
from lightning_budget.evaluation import (
    Evaluation,
    PredictionFormat,
    evaluate,
    print_rankings,
    read_predictions,
    write_evaluation,
)
from lightning_budget.report import check_request, print_report
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable, concatenate
from lightning_budget.training.comparison import close_loggers
from lightning_budget.training.export import load_model, load_schema
from lightning_budget.training.predict import predict_batches
from lightning_budget.trial import check_trial, print_checks

ALL = "all"
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.5)
T = TypeVar("T")


def absolute_paths(given: Any) -> list[Path]:
    """None, one path or a list of them."""
    several = [] if given is None else list(given) if isinstance(given, ListConfig) else [given]
    return [Path(str(p)).expanduser().absolute() for p in several]


def checkpoint_paths(ckpt: Any) -> list[Path]:
    """The checkpoints, each once."""
    paths = absolute_paths(ckpt)
    if len(set(paths)) < len(paths):
        raise InputError(f"ckpt={[str(p) for p in paths]}", "different checkpoints", "name each once")
    return paths


def method_names(paths: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: a phase's name, else folder and file."""
    phases = [p.parent.name for p in paths]
    if len(set(phases)) == len(paths):
        return phases
    return [f"{p.parent.name}/{p.stem}" if p.parent.name != p.anchor else p.stem for p in paths]


def prediction_paths(predictions: Any) -> dict[str, Path]:
    """Files of predictions by method: as named, or by their stems."""
    if isinstance(predictions, DictConfig):
        for name, path in predictions.items():
            if not isinstance(path, str):
                raise InputError(
                    f"predictions.{name}={path}", "one file or folder", "give each method a name of its own"
                )
        files = {str(name): absolute_paths(path)[0] for name, path in predictions.items()}
    else:
        paths = absolute_paths(predictions)
        files = {p.stem: p for p in paths}
        if len(files) < len(paths):
            raise InputError(
                f"predictions={[str(p) for p in paths]} of one name", "a name each", "write predictions={a: …, b: …}"
            )
    for path in files.values():
        if not path.exists():
            raise InputError(f"{path}: no such file", "a .parquet file, or a folder of them", "check the path")
        if path.name.endswith((".csv", ".csv.gz")):
            raise InputError(f"predictions in {str(path)!r}", "Parquet", "convert them")
    return files


def all_names(checkpoints: list[Path], files: dict[str, Path]) -> list[str]:
    """Of all methods, checkpoints first."""
    names = method_names(checkpoints)
    if not names and not files:
        raise InputError(
            "neither ckpt nor predictions", "one of them, or both", "give ckpt=runs/…/best.ckpt or predictions=…"
        )
    if both := sorted(set(names) & set(files)):
        raise InputError(
            f"a checkpoint and a file of predictions named {both[0]!r}",
            "a name each",
            "write predictions={another_name: …}",
        )
    return [*names, *files]


def data_config(cfg: DictConfig, run: DictConfig | None) -> DictConfig:
    """The data set named on the command line, or that of the run."""
    if cfg.data is None and run is None:
        raise InputError(
            "no data set for predictions", "a trial with outcomes", "give data=table data.path=… data.treatment=… …"
        )
    return cast("DictConfig", cfg.data if run is None else run.data)


def load_split(config: DictConfig, checkpoints: list[Path], split: str) -> tuple[RCTDataModule, RCTTable, DataSchema]:
    """The split to evaluate on, encoded as the first checkpoint was trained."""
    schema = load_schema(checkpoints[0]) if checkpoints else None
    for path in checkpoints[1:]:
        if load_schema(path) != schema:
            raise InputError(
                f"{str(path)!r} has another data schema",
                f"that of {str(checkpoints[0])!r}",
                "evaluate it alone",
            )
    datamodule = build(config)
    if schema is not None and hasattr(datamodule, "use_schema"):
        datamodule.use_schema(schema)
    table, found = whole_data(datamodule, schema) if split == ALL else (datamodule.split(split), datamodule.schema)
    if schema is not None and found != schema:
        raise InputError(
            f"{str(checkpoints[0])!r} was trained on other columns, arms or tables than this data set has",
            "a checkpoint of the same data schema",
            "give data=… as in its training",
        )
    return datamodule, table, found


def whole_data(datamodule: RCTDataModule, schema: DataSchema | None) -> tuple[RCTTable, DataSchema]:
    """All rows, those of a file in its order."""
    if isinstance(datamodule, TableRCTDataModule):
        trial = read_trial(
            datamodule.path,
            datamodule.columns,
            (1.0, 0.0, 0.0),
            schema=schema,
            exclude=datamodule.exclude,
            check_shares=datamodule.check_shares,
        )
        datamodule.screened = trial.rows
        return trial.splits["train"], trial.schema
    return concatenate([datamodule.split(name) for name in SPLITS]), datamodule.schema


def predict(path: Path, datamodule: RCTDataModule, table: RCTTable, name: str) -> ResponsePrediction:
    """Predict the split with one checkpoint, on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(path, device)

    class OfBatch(torch.nn.Module):
        def forward(self, batch: Any) -> ResponsePrediction:
            return model(batch.dense, batch.sparse)

    batches = datamodule.table_dataloader(table)
    return predict_batches(OfBatch(), track(batches, f"Predicting with {name}", len(batches)), len(table), device)


def prediction_format(cfg: DictConfig) -> PredictionFormat:
    """What the columns of the files of predictions are named."""
    value, cost = (
        OmegaConf.to_object(x) if OmegaConf.is_config(x) else x for x in (cfg.value_columns, cfg.cost_columns)
    )
    return PredictionFormat(cfg.user_column, cast("Any", value), cast("Any", cost), cfg.row_order)


def progress(sequence: Sequence[T], description: str) -> Iterable[T]:
    """A bar for a loop that has something to do."""
    return track(sequence, description) if sequence else sequence


def log_evaluation(evaluation: Evaluation, pictures: list[Path], cfg: DictConfig, folder: Path) -> None:
    """Numbers to every logger of the config; tables and pictures to W&B."""
    for config in (cfg.logger or {}).values():
        extra = {"save_dir": str(folder)}
        if config._target_.endswith("WandbLogger"):
            extra |= {"name": f"{folder.parent.name}/{folder.name}", "group": folder.parent.name}
        logger = build(config, **extra)
        logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        logger.log_metrics(evaluation.numbers())
        if isinstance(logger, WandbLogger):
            for name, (columns, rows) in evaluation.tables().items():
                logger.log_table(f"{evaluation.split}/table/{name}", columns, rows)
            for picture in (p for p in pictures if p.suffix == ".png"):
                logger.log_image(f"{evaluation.split}/picture/{picture.stem}", [str(picture)])
        logger.finalize("success")
        close_loggers([logger])


@cli.main("evaluate")
def main(cfg: DictConfig) -> None:
    """Checks of the trial, the table, report.json, curves.parquet and pictures of predictions on a split."""
    quiet()
    checkpoints, files = checkpoint_paths(cfg.ckpt), prediction_paths(cfg.predictions)
    names = all_names(checkpoints, files)
    if cfg.split not in (*SPLITS, ALL):
        raise InputError(f"split {cfg.split!r}", ", ".join((*SPLITS, ALL)), "name one of them")
    beside = [*checkpoints, *files.values()][0].parent
    folder = Path(cfg.run_dir or beside / f"evaluation-{cfg.split}").expanduser().absolute()
    check_can_be_made(folder, "run_dir")
    run = saved_config(run_folder_of(checkpoints[0])) if cfg.data is None and checkpoints else None
    config = data_config(cfg, run)
    budgets = list(cfg.budgets or (run.budgets if run is not None else BUDGETS))
    check_request(names, budgets, cfg.resamples)

    datamodule, table, schema = load_split(config, checkpoints, cfg.split)
    checks = check_trial(table, schema, getattr(datamodule, "screened", None))
    print_checks(checks)
    brought = {name: read_predictions(path, table, schema, prediction_format(cfg)) for name, path in files.items()}
    own = {n: predict(p, datamodule, table, n) for n, p in zip(method_names(checkpoints), checkpoints, strict=True)}
    sources = {name: str(path) for name, path in zip(names, [*checkpoints, *files.values()], strict=True)}
    evaluation = evaluate(
        table, schema, own | brought, budgets, cfg.resamples, cfg.seed, cfg.split, sources, checks, progress
    )
    pictures = write_evaluation(evaluation, folder)
    log_evaluation(evaluation, pictures, cfg, folder)
    print_report(evaluation.report)
    print_rankings(evaluation)
    print(f"Report: {folder}")


if __name__ == "__main__":
    main()
