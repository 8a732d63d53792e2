"""The real e-mail trial as published, by the shipped configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MissingMandatoryValue, OmegaConf

from datamodules import TableRCTDataModule
from lightning_budget.errors import InputError
from lightning_budget.table import RCTTable

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
SPLITS = ("train", "val", "test")


def load(name: str = "hillstrom", **changes: Any) -> TableRCTDataModule:
    data = instantiate(OmegaConf.merge(OmegaConf.load(CONFIGS / f"{name}.yaml"), changes))
    data.setup()
    return data


def outcomes(data: TableRCTDataModule) -> tuple[list[int], list[float]]:
    """Rows and mean value of each arm, all splits together."""
    arm = torch.cat([data.split(s).treatment for s in SPLITS])
    value = torch.cat([data.split(s).value for s in SPLITS]).double()
    return [int((arm == k).sum()) for k in range(3)], [float(value[arm == k].mean()) for k in range(3)]


def feature_rows(table: RCTTable) -> set[tuple[float, ...]]:
    ids = torch.stack([table.ids[k] for k in table.ids], 1)  # type: ignore[arg-type]
    return set(map(tuple, torch.cat([table.dense, ids], 1).tolist()))


def test_published_arms_and_visit_rates(hillstrom: Path) -> None:
    data = load(path=str(hillstrom))
    counts, rates = outcomes(data)
    assert counts == [21_306, 21_307, 21_387]
    assert [round(r, 4) for r in rates] == [0.1062, 0.1828, 0.1514]
    assert data.schema.known_cost == (0.0, 0.1, 0.1)
    assert [f.num_embeddings for f in data.schema.sparse] == [8, 4, 4]
    cost = torch.tensor([0.0, 0.1, 0.1])
    assert all(torch.equal(data.split(s).cost, cost[data.split(s).treatment]) for s in SPLITS)
    assert data.statistics.value_scale == 1.0


def test_published_spend(hillstrom: Path) -> None:
    data = load(path=str(hillstrom), value="spend", value_kind="continuous", value_unit="dollars")
    assert [round(m, 4) for m in outcomes(data)[1]] == [0.6528, 1.4226, 1.0772]


def test_rows_with_equal_features_stay_in_one_split(hillstrom: Path) -> None:
    data = load(path=str(hillstrom))
    rows = [feature_rows(data.split(s)) for s in SPLITS]
    assert not rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2]
    assert sum(map(len, rows)) < 64_000  # there are such rows
    assert [len(data.split(s)) / 64_000 for s in SPLITS] == pytest.approx([0.6, 0.2, 0.2], abs=0.01)
    users = torch.cat([data.split(s).user for s in SPLITS])
    assert torch.equal(users.sort().values, torch.arange(64_000))


def test_csv_as_published_gives_the_same_tables(hillstrom: Path, tmp_path: Path) -> None:
    # The publisher's file ends lines with CR LF and quotes only labels with a comma ("7) $1,000 +").
    plain = tmp_path / "plain.csv"
    options = pyarrow.csv.WriteOptions(quoting_style="needed", quoting_header="none")
    pyarrow.csv.write_csv(pyarrow.parquet.read_table(hillstrom), plain, options)
    published = tmp_path / "hillstrom.csv"
    published.write_bytes(plain.read_bytes().replace(b"\n", b"\r\n"))
    a, b = load(path=str(hillstrom)), load(path=str(published))
    assert a.schema == b.schema
    assert a.statistics == b.statistics
    for name in SPLITS:
        x, y = a.split(name), b.split(name)
        assert all(
            torch.equal(getattr(x, f), getattr(y, f))
            for f in ("user", "dense", "treatment", "value", "cost", "propensity")
        )
        assert all(torch.equal(x.ids[k], y.ids[k]) for k in x.ids)  # type: ignore[arg-type]


def test_without_path_it_says_where_the_file_is() -> None:
    with pytest.raises(InstantiationException) as caught:
        load()
    cause = caught.value.__cause__
    assert isinstance(cause, InputError)
    assert "data.path is missing" in str(cause)
    assert "MineThatData" in str(cause)
    assert "Kevin Hillstrom" in str(cause)


def test_own_table_names_its_required_keys(hillstrom: Path) -> None:
    config = OmegaConf.load(CONFIGS / "table.yaml")
    assert OmegaConf.missing_keys(config) == {"path", "treatment", "arms", "value"}
    with pytest.raises((InstantiationException, MissingMandatoryValue), match="path"):
        load("table")
    data = load(
        "table",
        path=str(hillstrom),
        treatment="segment",
        arms=["No E-Mail", "Mens E-Mail", "Womens E-Mail"],
        value="spend",
        cost="visit",
        dense=["recency"],
        categorical=["channel"],
    )
    assert data.schema.value_kind == "continuous"
    assert data.train.cost.unique().tolist() == [0.0, 1.0]


def test_its_config_has_the_keys_that_apply() -> None:
    """None that a table lacks, and none of columns that the file does not have."""
    preset, table = (OmegaConf.load(CONFIGS / f"{name}.yaml") for name in ("hillstrom", "table"))
    assert set(preset) <= set(table)
    assert not [name for name, value in preset.items() if value in (None, []) and name not in ("path", "pin_memory")]
