"""Every named data set through prepare and then through the data module of its preset, as a user would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import lightning_budget.config_schema  # noqa: F401 - registers the schemas that the configs start from
from datamodules import OracleTableDataModule, RCTDataModule, TableRCTDataModule
from lightning_budget.errors import InputError
from lightning_budget.published.catalogue import PUBLISHED
from lightning_budget.published.generate import campaign_mt7, criteo_mt7
from lightning_budget.published.mt_lift import FEATURES, VALIDATION
from lightning_budget.published.prepare import Prepared, prepare

CONFIGS = Path(__file__).parents[2] / "configs"
SPLITS = ("train", "val", "test")
Shared = Callable[[str], Path]


def load(preset: str, path: Path, *changes: str) -> Any:
    """The data module of a preset, set up."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        data = instantiate(compose("train", [f"data={preset}", f"data.path={path}", *changes]).data)
    data.setup()
    return data


def prepared(name: str, source: Path, tmp_path: Path) -> tuple[Prepared, Path]:
    output = tmp_path / f"{name}.parquet"
    done = prepare(PUBLISHED[name], source, output)
    assert done.passed
    assert done.output == output
    return done, output


def by_arm(data: RCTDataModule, field: str, arms: int) -> list[float]:
    """Mean of a field in each arm, all splits together."""
    arm = torch.cat([data.split(s).treatment for s in SPLITS])
    x = torch.cat([getattr(data.split(s), field) for s in SPLITS]).double()
    return [float(x[arm == k].mean()) for k in range(arms)]


def counts(data: RCTDataModule, arms: int) -> list[int]:
    return torch.bincount(torch.cat([data.split(s).treatment for s in SPLITS]), minlength=arms).tolist()


def test_hillstrom(hillstrom_csv: Path, tmp_path: Path) -> None:
    done, output = prepared("hillstrom", hillstrom_csv, tmp_path)
    assert {c.name: c.passed for c in done.checks}["file hillstrom.csv"] is True
    a, b = load("hillstrom", output), load("hillstrom", hillstrom_csv)
    assert counts(a, 3) == [21_306, 21_307, 21_387]
    assert [round(r, 4) for r in by_arm(a, "value", 3)] == [0.1062, 0.1828, 0.1514]
    assert a.schema == b.schema
    for split in SPLITS:
        x, y = a.split(split), b.split(split)
        assert torch.equal(x.user, y.user)
        assert torch.equal(x.dense, y.dense)
    spend = (
        pyarrow.parquet.read_table(output, columns=["segment", "spend"])
        .group_by("segment")
        .aggregate([("spend", "mean")])
    )
    assert sorted(round(m, 4) for m in spend["spend_mean"].to_pylist()) == [0.6528, 1.0772, 1.4226]


def test_hillstrom_with_a_changed_byte(hillstrom_csv: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.csv"
    changed.write_bytes(hillstrom_csv.read_bytes().replace(b"142.44", b"142.45", 1))
    done = prepare(PUBLISHED["hillstrom"], changed, tmp_path / "out.parquet")
    assert [c.name for c in done.checks if c.passed is False] == ["file changed.csv"]
    assert done.output is None


@pytest.mark.parametrize(
    ("sample", "visit", "conversion"), [("strat3000", 0.0457, 0.0033), ("rand1000", 0.0350, 0.0020)]
)
def test_criteo(shared: Shared, tmp_path: Path, sample: str, visit: float, conversion: float) -> None:
    source = shared(f"criteo_uplift_v21_sample/criteo_{sample}.parquet")
    _, output = prepared("criteo", source, tmp_path)
    data = load("criteo", output)
    rows = sum(counts(data, 2))
    assert rows == int(sample[-4:])
    assert [len(data.split(s)) for s in SPLITS] == [rows * 6 // 10, rows // 10, rows * 3 // 10]
    every = {f: torch.cat([getattr(data.split(s), f) for s in SPLITS]) for f in ("value", "cost", "propensity")}
    assert round(float(every["value"].mean()), 4) == conversion
    assert round(float(every["cost"].mean()), 4) == visit
    assert every["propensity"].unique().tolist() == pytest.approx([0.15, 0.85])
    assert (data.schema.value_kind, data.schema.cost_kind) == ("binary", "binary")
    assert "exposure" not in data.schema.dense


def test_criteo_hybrid(shared: Shared, tmp_path: Path) -> None:
    source = shared("criteo_uplift_v21_sample/criteo_strat3000.parquet")
    done, output = prepared("criteo_hybrid", source, tmp_path)
    data = load("criteo_hybrid", output)
    assert [len(data.split(s)) for s in SPLITS] == [150, 300, 900]
    assert done.rows == 1350
    obs = pyarrow.parquet.read_table(tmp_path / "criteo_hybrid_obs.parquet")
    assert set(obs["split"].to_pylist()) == {"obs"}
    assert len(obs) == pytest.approx(750, abs=100)
    assert 0.7 < obs["treatment"].to_numpy().mean() < 0.95


def test_karlan_list(shared: Shared, tmp_path: Path) -> None:
    source = shared("karlan_list_charitable/karlan_list_charitable.parquet")
    done, output = prepared("karlan_list", source, tmp_path)
    assert (done.rows, done.left_out) == (50_081, 2)
    assert "2 rows without out_amountgive left out" in done.remarks
    table = pyarrow.parquet.read_table(output)
    assert not [n for n in table.column_names if n.startswith("stateresponse") or n == "out_changeamtgive"]
    assert table["pwhite"].null_count == 1866
    assert -999 not in table["years"].to_pylist()
    data = load("karlan_list", output)
    assert counts(data, 4) == [16_687, 11_133, 11_134, 11_127]
    assert [round(m, 3) for m in by_arm(data, "value", 4)] == [0.813, 0.937, 1.026, 0.933]
    for split in SPLITS:
        rows = data.split(split)
        assert torch.equal(rows.cost, rows.treatment.float() * rows.value)
        assert not rows.dense.isnan().any()
    gave = load("karlan_list", output, "data.value=out_gavedum", "data.value_kind=binary")
    assert [round(m, 4) for m in by_arm(gave, "value", 4)] == [0.0179, 0.0207, 0.0226, 0.0226]  # two of 3:1 are out
    # Each gift matched as the columns of the prepared file say.
    assert np.array_equal(table["cost"].to_numpy(), table["ratio"].to_numpy() * table["out_amountgive"].to_numpy())


def mt_lift_folder(folder: Path, train: int = 1200, test: int = 400) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, rows in (("train.csv", train), ("test.csv.gz", test)):
        columns: dict[str, Any] = {f: rng.standard_normal(rows).round(3) for f in FEATURES}
        columns["f7"] = pa.array(columns["f7"], mask=rng.random(rows) < 0.1)
        arms = rng.integers(0, 5, rows)
        click = rng.random(rows) < 0.3349
        columns |= {"click": click.astype(int), "conversion": (click & (rng.random(rows) < 0.2036)).astype(int)}
        with pa.output_stream(str(folder / name)) as out:
            pa.csv.write_csv(pa.table({**columns, "treatment": arms}), out)
    return folder


def test_mt_lift(tmp_path: Path) -> None:
    folder = mt_lift_folder(tmp_path / "raw")
    done, output = prepared("mt_lift", folder, tmp_path)
    assert {c.name: c.passed for c in done.checks}["mean of click"] is True
    assert {c.name: c.expected for c in done.checks}["rows of the arms"] == "shares not known to us"
    data = load("mt_lift", output)
    sizes = [len(data.split(s)) for s in SPLITS]
    assert sizes[2] == 400
    assert sizes[1] == pytest.approx(1200 * VALIDATION, abs=50)
    assert sum(sizes) == 1600
    for split in SPLITS:
        rows = data.split(split)
        assert torch.equal(rows.cost, rows.treatment.float() * rows.value)
        assert not rows.dense.isnan().any()
    assert len(data.schema.dense) == 99
    shares = torch.bincount(data.train.treatment).double() / len(data.train)
    assert torch.allclose(data.train.propensity.double(), shares[data.train.treatment], atol=1e-6)


def test_mt7_from_the_campaign_and_from_criteo(shared: Shared, tmp_path: Path) -> None:
    campaign_mt7(tmp_path / "campaign.parquet", rows=2000)
    criteo_mt7(shared("criteo_uplift_v21_sample/criteo_strat3000.parquet"), tmp_path / "criteo.parquet")
    for preset, file in (("campaign_mt7", "campaign"), ("criteo_mt7", "criteo")):
        data = load(preset, tmp_path / f"{file}.parquet")
        assert isinstance(data, OracleTableDataModule)
        table = pyarrow.parquet.read_table(tmp_path / f"{file}.parquet").to_pandas()
        assert sum(len(data.split(s)) for s in SPLITS) == len(table)
        for split in SPLITS:
            rows = data.split(split)
            assert rows.true_value is not None
            assert rows.true_cost is not None
            mine = table.iloc[rows.user.numpy()]
            assert rows.value.numpy() == pytest.approx(mine["value"].to_numpy())
            assert rows.true_value.numpy() == pytest.approx(mine[[f"true_value_{j}" for j in range(8)]].to_numpy())
            assert rows.true_cost.numpy() == pytest.approx(mine[[f"true_cost_{j}" for j in range(8)]].to_numpy())
            assert not rows.true_cost[:, 0].any()
        assert data.schema.known_cost[0] == 0


def test_oracle_columns_must_fit(tmp_path: Path) -> None:
    trial = {"path": "x.parquet", "treatment": "t", "arms": ["a", "b"], "value": "v", "cost": "c", "dense": ["x"]}
    with pytest.raises(InputError, match="true_cost of 1 columns; allowed: 2, one per arm"):
        OracleTableDataModule(true_value=["p", "q"], true_cost=["p"], **trial)
    with pytest.raises(InputError, match=r"user='u'; allowed: null"):
        OracleTableDataModule(true_value=["p", "q"], true_cost=["r", "s"], user="u", **trial)
    with pytest.raises(InputError, match=r"feature 'x' is the oracle's"):
        OracleTableDataModule(true_value=["p", "x"], true_cost=["r", "s"], **trial)


def test_every_preset_says_where_its_data_is_from() -> None:
    for preset in [*PUBLISHED, "criteo_mt7", "campaign_mt7"]:
        cfg = OmegaConf.load(CONFIGS / "data" / f"{preset}.yaml")
        with pytest.raises(InputError, match=r"data\.path is missing") as caught:
            TableRCTDataModule(path=cfg.path, treatment="t", arms=["a", "b"], value="v", source=cfg.source)
        assert preset in str(caught.value) or preset == "hillstrom"


def test_descriptions_are_whole() -> None:
    for name, data in PUBLISHED.items():
        assert data.name == name
        assert all((data.title, data.where, data.licence, data.allows, data.citation, data.files))
        assert {r.column for r in data.rates} <= set(data.columns)
        assert {*data.required, *data.dropped, *data.nullable} <= set(data.columns)
        assert (
            data.rows is None
            or all(a.rows is None for a in data.arms)
            or sum(a.rows or 0 for a in data.arms) == data.rows
        )
        shares = [a.share for a in data.arms if a.share is not None]
        assert not shares or sum(shares) == pytest.approx(1)
        labels = {a.label for a in data.arms}
        assert all(r.arm is None or r.arm in labels for r in data.rates)
        assert replace(data).files == data.files
