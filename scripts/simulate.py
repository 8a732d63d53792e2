"""The embedded campaign as a folder of Parquet of any size: ``python scripts/simulate.py output=… rows=1e8 workers=8``.

Partitions are written independently, one at a time in each of the processes; the result does not depend on how many
there are. A job that was killed goes on when the same command runs again.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_budget import cli
from lightning_budget.campaign import SPLITS, Campaign
from lightning_budget.errors import InputError


def whole(key: str, value: float) -> int:
    """A count that may be written 1e9."""
    if value != value // 1:
        raise InputError(f"{key}={value!r}", "a whole number, such as 1e9 or 250000", "round it")
    return int(value)


def rows_of(cfg: DictConfig) -> dict[str, int]:
    """Rows of each split."""
    rows, shares = whole("rows", cfg.rows), list(cfg.split)
    if len(shares) != 3 or not all(s > 0 for s in shares) or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"split={shares}", "three shares > 0 that sum to 1 (train, val, test)", "split=[0.8,0.1,0.1]")
    val, test = (round(rows * s) for s in shares[1:])
    return {"train_rows": rows - val - test, "val_rows": val, "test_rows": test}


def campaign_of(cfg: DictConfig) -> Campaign:
    """The campaign of the config."""
    counts = rows_of(cfg)
    if min(counts.values()) < 1:
        raise InputError(f"rows={cfg.rows:g}", "at least one row in every split", "rows=1e6")
    given: Any = OmegaConf.to_container(cfg, resolve=True)
    options = {f.name: given[f.name] for f in fields(Campaign) if f.name in given}
    users = max(whole("rows", cfg.rows) // 10, 1) if cfg.users is None else whole("users", cfg.users)
    sizes = {"users": users, "partition_rows": whole("partition_rows", cfg.partition_rows)}
    return Campaign(**{**options, **counts, **sizes, "face_values": tuple(cfg.face_values)})


@cli.main("simulate")
def main(cfg: DictConfig) -> None:
    """Generate and write."""
    # The processes that write import this file, and need no more than they have.
    from lightning_budget.campaign.writing.dataset import CONFIG
    from lightning_budget.campaign.writing.job import Simulation, simulate

    output = Path(cfg.output).expanduser().absolute()
    campaign = campaign_of(cfg)
    done = simulate(Simulation(campaign, output, cfg.oracle, cfg.workers))
    rows = ", ".join(f"{split} {campaign.rows(split):,}" for split in SPLITS)
    before = f", {done.earlier:,} of them there before" if done.earlier else ""
    print(f"{done.rows:,} rows ({rows}) in {done.partitions:,} partitions{before}, {done.bytes / 2**20:,.0f} MiB.")
    print("To train on it:")
    print(f"python scripts/train.py 'hydra.searchpath=[{output / CONFIG}]' data=simulated data.path={output}")


if __name__ == "__main__":
    main()
