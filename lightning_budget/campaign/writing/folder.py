"""The folder that a simulation fills, and what it remembers of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_budget.atomic import atomic_path
from lightning_budget.campaign.campaign import SPLITS, Campaign
from lightning_budget.errors import InputError

MANIFEST = "_simulation.json"
"""All arguments; there from the first partition on."""

FORMAT = 1
"""Of the columns; a folder begun with another one is not gone on with."""


@dataclass(frozen=True)
class Part:
    """One partition: its place in the campaign and in the folder."""

    split: str
    index: int
    rows: int
    path: Path


def parts_of(campaign: Campaign, output: Path) -> list[Part]:
    """All partitions, ``split=train/part-000000.parquet`` and so on."""
    return [
        Part(split, i, min(rows, campaign.rows(split) - i * rows), output / f"split={split}" / f"part-{i:06}.parquet")
        for rows in (campaign.partition_rows,)
        for split in SPLITS
        for i in range(campaign.partitions(split))
    ]


def claim(output: Path, campaign: Campaign, oracle: bool) -> None:
    """Record the arguments in a new folder, or see that they are those of the job that began it.

    Raises:
        InputError: if the folder holds something else.
    """
    wanted = {"format": FORMAT, "oracle": oracle, **json.loads(json.dumps(asdict(campaign)))}
    manifest = output / MANIFEST
    if manifest.exists():
        _check_same(output, _read(manifest), wanted)
    elif found := sorted(p.name for p in output.iterdir() if not p.name.startswith(".")):
        raise InputError(
            f"output={str(output)!r} holds something else, such as {found[0]!r}",
            "a new or empty folder, or one that this simulation began",
            "give another output=…",
        )
    else:
        with atomic_path(manifest) as temporary:
            temporary.write_text(json.dumps(wanted, indent=1) + "\n")


def _read(manifest: Path) -> dict[str, Any]:
    try:
        found = json.loads(manifest.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{manifest} is damaged", "the arguments of the simulation that began the folder", "give another output=…"
        )
    return found


def _check_same(output: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = {k: found.get(k) for k in wanted if k not in found or found[k] != wanted[k]}
    other |= {k: v for k, v in found.items() if k not in wanted}
    if other:
        pairs = ", ".join(f"{k}={json.dumps(v)}" for k, v in other.items())
        ours = ", ".join(f"{k}={json.dumps(wanted[k])}" for k in other if k in wanted) or "without"
        raise InputError(
            f"output={str(output)!r} was begun with {pairs}, not {ours}",
            "the same arguments, to go on, or a new folder",
            "give another output=…",
        )


def sweep(output: Path) -> None:
    """Remove what a killed job was writing."""
    for split in SPLITS:
        for path in (output / f"split={split}").glob(".*.tmp"):
            path.unlink(missing_ok=True)
