"""A checkpoint as plain PyTorch files for serving: ``python scripts/export.py ckpt=…``."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleDimensions
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from lightning_budget import cli
from lightning_budget.allocation.policy_origin import content_hash
from lightning_budget.allocation.price_policy import PricePolicy
from lightning_budget.cli.build import check_can_be_made, quiet
from lightning_budget.data.users import read_users
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.serving import load_policy
from lightning_budget.statistics import DataStatistics
from lightning_budget.table import RCTTable
from lightning_budget.training.export import load_model, read_checkpoint
from lightning_budget.training.serving_check import LATENCY_USERS, Comparison, random_users
from lightning_budget.training.serving_export import FORMATS, to_serving, write_checked

EXAMPLE = "example_users.parquet"
WIDTH = 100


def check_request(cfg: DictConfig, output: Path) -> None:
    """Refuse what would only fail after the work is done."""
    unknown = [f for f in cfg.formats if f not in FORMATS]
    if unknown or not cfg.formats:
        found = f"formats={unknown[0]!r}" if unknown else "formats=[]"
        raise InputError(found, ", ".join(FORMATS), "choose one or more of the allowed: formats=[plain]")
    if cfg.multiplier is not None and not (math.isfinite(cfg.multiplier) and cfg.multiplier >= 0):
        raise InputError(
            f"multiplier={cfg.multiplier:g}", "a number ≥ 0, value per currency", "allocate.py prints the multiplier"
        )
    if cfg.multiplier is not None and cfg.policy is not None:
        raise InputError(
            f"multiplier={cfg.multiplier:g} and policy={cfg.policy}", "one of both", "leave one of them out"
        )
    check_can_be_made(output, "output")


def policy_to_serve(cfg: DictConfig, ckpt: Path, schema: DataSchema) -> PricePolicy | None:
    """The policy that travels along; of a file, only one that this checkpoint's predictions led to."""
    if cfg.policy is None:
        return None if cfg.multiplier is None else PricePolicy(cfg.multiplier)
    policy = load_policy(Path(cfg.policy).expanduser())
    if not isinstance(policy, PricePolicy) or policy.treatments not in ((), schema.treatments):
        found = "a paced policy" if not isinstance(policy, PricePolicy) else f"of {', '.join(policy.treatments)}"
        raise InputError(
            f"policy={cfg.policy} is {found}",
            f"a price policy of {', '.join(schema.treatments)}",
            "give one that was solved with this checkpoint",
        )
    if math.isinf(policy.multiplier):
        raise InputError(f"policy={cfg.policy} has multiplier inf", "a finite one", "solve it for a larger budget")
    source = None if policy.origin is None else policy.origin.checkpoint
    if source is not None and source.sha256 != (found := content_hash(ckpt)):
        raise InputError(
            f"policy={cfg.policy} was solved with {source.path}, sha256 {source.sha256[:12]}…",
            f"the checkpoint to export, sha256 {found[:12]}…",
            "allocate anew with this checkpoint, or export the other one",
        )
    return policy


def users_to_compare(
    cfg: DictConfig, ckpt: Path, schema: DataSchema, statistics: DataStatistics
) -> tuple[RCTTable, str]:
    """Users and where they come from: the file given, else the run's example, else the schema's random ones."""
    if cfg.users is not None:
        found = [Path(cfg.users).expanduser().absolute()]
    else:
        found = [p for p in (ckpt.parent / EXAMPLE, ckpt.parent.parent / EXAMPLE) if p.is_file()]
    if not found:
        return random_users(schema, statistics), "random users, for the run has no " + EXAMPLE
    return read_users(found[0], schema)[0], f"users of {found[0]}"


def bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def as_table(rows: list[Comparison], schema: DataSchema) -> Table:
    """Every file beside the training model."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("artifact", no_wrap=True)
    headers = [
        "file",
        "tables",
        f"|Δvalue|\n{escape(schema.value_unit)}",
        "over its\nspread",
        f"|Δcost|\n{escape(schema.cost_unit)}",
        "users\nchanged",
        *(f"ms for\n{n:,}" for n in LATENCY_USERS),
    ]
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            decimal(row.file_bytes),
            decimal(row.table_bytes),
            f"{row.value_error:.2g}",
            f"{row.value_error_relative:.2g}",
            f"{row.cost_error:.2g}",
            "–" if row.changed is None else f"{row.changed:.3%}",
            *(f"{ms:.3g}" for ms in row.milliseconds),
        )
    return table


@cli.main("export")
def main(cfg: DictConfig) -> None:
    """Convert, compare, keep."""
    quiet()
    ckpt = Path(cfg.ckpt).expanduser().absolute()
    output = Path(cfg.output).expanduser().absolute() if cfg.output is not None else ckpt.parent / "export"
    check_request(cfg, output)
    hyper = read_checkpoint(ckpt)["hyper_parameters"]
    schema, statistics = DataSchema.from_dict(hyper["schema"]), DataStatistics.from_dict(hyper["statistics"])
    policy = policy_to_serve(cfg, ckpt, schema)
    model = load_model(ckpt)
    users, source = users_to_compare(cfg, ckpt, schema, statistics)
    multiplier, origin = (None, None) if policy is None else (policy.multiplier, policy.origin)
    serving = to_serving(model, schema, statistics.to_dict(), multiplier, origin)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = write_checked(model, serving, users, list(cfg.formats), output)
    console = Console(highlight=False)
    console.size = ConsoleDimensions(max(console.width, WIDTH), console.height)
    console.print(as_table([replace(rows[0], file_bytes=bytes_of(ckpt)), *rows[1:]], schema))
    print(f"Largest differences from the training model on {len(users):,} {source}.")
    print(f"Times are medians on {torch.get_num_threads()} CPU thread(s), from features to treatments.")
    print(f"Export: {output}")


if __name__ == "__main__":
    main()
