"""One treatment per user within a budget: ``python scripts/allocate.py [ckpt=…] budget=… input=… output=…``.

The input is a Parquet file or a folder of them, larger than memory if need be: of features, scored with the checkpoint,
or of predictions of any library, ``user_id, value_0, cost_0, value_1, …``. Under ``torchrun`` processes share the work.
The policy that serves the same allocation online is written along: ``OUTPUT.policy.json`` beside a file, or
``_policy.json`` in a folder.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import pyarrow as pa
import torch
from omegaconf import DictConfig, OmegaConf

from lightning_budget import cli
from lightning_budget.allocation.policy_origin import Budget, CheckpointSource, DataSource, PolicyOrigin, content_hash
from lightning_budget.allocation.price_policy import PricePolicy
from lightning_budget.cli.build import check_can_be_made, quiet
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.serving import load_policy, save_policy
from lightning_budget.streaming import Request, Result, allocate_files
from lightning_budget.streaming.batches import BATCH_ROWS
from lightning_budget.streaming.features import FeatureScorer, as_parquet, check_features
from lightning_budget.streaming.output import policy_path
from lightning_budget.streaming.predictions import PredictionColumns, Scorer, prediction_columns
from lightning_budget.streaming.ranks import ElsewhereError, Ranks, joined
from lightning_budget.streaming.source import Source, open_source
from lightning_budget.streaming.work import workplace
from lightning_budget.training.export import load_model, load_schema

ACCELERATORS = ("auto", "cpu", "gpu", "cuda")


def check_request(cfg: DictConfig) -> None:
    """Refuse what would only fail after the work is done."""
    if not (math.isfinite(cfg.budget) and cfg.budget > 0):
        raise InputError(f"budget={cfg.budget:g}", "above 0, in currency for all users together", "give budget=1000")
    if cfg.batch_size < 1:
        raise InputError(f"batch_size={cfg.batch_size}", "at least 1", "16384 is the default")
    output, given = absolute(cfg.output), absolute(cfg.input)
    if given.is_dir():
        if output.suffix == ".parquet":
            raise InputError(
                f"output={str(output)!r} for a folder of partitions", "a folder", f"output={output.with_suffix('')}"
            )
    elif output.suffix != ".parquet":
        raise InputError(
            f"output={str(output)!r}", "a file ending in .parquet", f"output={output.with_suffix('.parquet')}"
        )
    check_can_be_made(output.parent, "output")
    check_policy_file(policy_path(output, not given.is_dir()))
    if cfg.accelerator not in ACCELERATORS:
        raise InputError(f"accelerator={cfg.accelerator!r}", ", ".join(ACCELERATORS), "choose one of the allowed")
    if cfg.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError(f"accelerator={cfg.accelerator!r} without a CUDA device", "auto, cpu", "use accelerator=auto")
    if cfg.ckpt is None and given.name.endswith((".csv", ".csv.gz")):
        raise InputError(f"input={str(given)!r} of predictions", "Parquet", "convert it, or give ckpt=… if of features")
    if cfg.ckpt is not None and (cfg.value_columns is not None or cfg.cost_columns is not None):
        raise InputError(
            "ckpt together with value_columns or cost_columns",
            "features with a checkpoint, or predictions without",
            "leave one of them out",
        )


def check_policy_file(path: Path) -> None:
    """Refuse to replace what is no policy."""
    if not path.exists():
        return
    try:
        load_policy(path)
    except InputError as e:
        raise InputError(
            f"{str(path)!r} stands where the policy would, and is none", "an earlier policy to replace", "move it away"
        ) from e


def absolute(path: str) -> Path:
    """With ``~`` resolved."""
    return Path(path).expanduser().absolute()


def seal_of(checkpoint: Path) -> str:
    """Changes when a file of the checkpoint does."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file()) if checkpoint.is_dir() else [checkpoint]
    return repr([(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files])


def feature_scorer(cfg: DictConfig, schema: DataSchema, ranks: Ranks) -> FeatureScorer:
    """The checkpoint's model, on this process's device."""
    use_cuda = torch.cuda.is_available() and cfg.accelerator in ("auto", "gpu", "cuda")
    device = torch.device("cuda", ranks.rank % torch.cuda.device_count()) if use_cuda else torch.device("cpu")
    return FeatureScorer(load_model(cfg.ckpt, device), schema, device, cfg.user_column, seal_of(absolute(cfg.ckpt)))


def is_csv(path: Path) -> bool:
    """Whether the file must be converted."""
    return path.is_file() and path.name.endswith((".csv", ".csv.gz"))


def origin_of(cfg: DictConfig, source: Source) -> PolicyOrigin:
    """Budget, data and checkpoint of the job."""
    path = absolute(cfg.input)
    checkpoint = None if cfg.ckpt is None else CheckpointSource.of(absolute(cfg.ckpt))
    fingerprint = content_hash(path) if is_csv(path) else source.fingerprint()
    return PolicyOrigin(
        Budget(float(cfg.budget), False, source.rows), DataSource(str(path), source.rows, fingerprint), checkpoint
    )


def input_source(cfg: DictConfig, schema: DataSchema | None, folder: Path) -> Source:
    """The input as Parquet."""
    path = absolute(cfg.input)
    if schema is not None and is_csv(path):
        path = as_parquet(path, schema, cfg.user_column, folder / "csv")
    return open_source(path)


def columns(cfg: DictConfig, source: Source) -> PredictionColumns:
    """The input's columns of predictions."""
    given = [OmegaConf.to_object(x) if OmegaConf.is_config(x) else x for x in (cfg.value_columns, cfg.cost_columns)]
    return prediction_columns(source, cfg.user_column, *given, cfg.treatments)  # type: ignore[arg-type]


def show(result: Result, scorer: Scorer, output: Path, single: bool) -> None:
    """Users per treatment, the certificate, and where the output and its policy are."""
    names = scorer.treatments or [str(j) for j in range(scorer.arms)]
    print("Users per treatment: " + ", ".join(f"{n} {c:,}" for n, c in zip(names, result.counts, strict=True)))
    for key, number in result.certificate.items():
        print(f"  {key:13} {number:,.6g}")
    print(f"Allocation: {output}")
    print(f"Policy: {policy_path(output, single)}")


@cli.main("allocate")
def main(cfg: DictConfig) -> None:
    """Scan, allocate, write."""
    quiet()
    try:
        with joined() as ranks:
            run(cfg, ranks)
    except ElsewhereError:
        sys.exit(2)


def run(cfg: DictConfig, ranks: Ranks) -> None:
    """The job of all processes."""
    # Arrow goes by OMP_NUM_THREADS too, which is 1 for torch's sake; columns are decoded on all cores of this process.
    cores = max((os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", ranks.size)), 1)
    pa.set_cpu_count(cores)
    ranks.first(lambda: check_request(cfg))
    schema = ranks.each(lambda: load_schema(cfg.ckpt))[ranks.rank] if cfg.ckpt is not None else None
    output = absolute(cfg.output)
    with workplace(output, ranks) as folder:
        source = ranks.first(lambda: input_source(cfg, schema, folder))

        def scorer_of() -> Scorer:
            if schema is None:
                return columns(cfg, source)
            scorer = feature_scorer(cfg, schema, ranks)
            check_features(source, scorer)
            return scorer

        found: list[Scorer] = []
        ranks.each(lambda: found.append(scorer_of()))
        origin = ranks.first(lambda: origin_of(cfg, source))

        def save(path: Path, certificate: dict[str, float | int]) -> None:
            save_policy(PricePolicy(float(certificate["multiplier"]), found[0].treatments, origin), path)

        request = Request(
            output,
            float(cfg.budget),
            batch_rows=BATCH_ROWS if schema is None else cfg.batch_size,
            allow_negative_cost=cfg.allow_negative_cost,
            check_duplicates=cfg.check_duplicates,
            threads=cores if schema is None else 1,
            save_policy=save,
        )
        result = allocate_files(source, found[0], request, ranks)
    if ranks.rank == 0:
        show(result, found[0], output, source.single)


if __name__ == "__main__":
    main()
