"""All checks of a table, printed and as JSON, and of the real e-mail trial."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lightning_budget.campaign import Campaign
from lightning_budget.errors import InputError
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable, concatenate
from lightning_budget.trial import as_text, check_trial, print_checks, screen_rows


@pytest.mark.parametrize("uniform", [True, False])
def test_the_campaign_is_sound(uniform: bool) -> None:
    campaign = Campaign(test_rows=20_000, users=4000, uniform=uniform)
    found = check_trial(campaign.partition("test", 0), campaign.schema)
    assert found.ok, as_text(found)
    assert found.sample_ratio.method == ("constant" if uniform else "by_feature")
    assert found.sample_ratio.users < 4000
    text = as_text(found)
    assert text.startswith("Checks of the experiment: nothing found.\n")
    assert max(map(len, text.splitlines())) <= 100
    assert all(arm in text for arm in campaign.schema.treatments)
    state = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(state) == ["ok", "verdicts", "sample_ratio", "balance", "propensity", "leakage"]
    assert state["verdicts"]["sample ratio"]["ok"] is True


def test_order_of_rows_changes_nothing() -> None:
    campaign = Campaign(test_rows=5000, users=1000)
    table = campaign.partition("test", 0)
    shuffled = table.select(torch.randperm(5000, generator=torch.Generator().manual_seed(0)))
    a, b = (json.dumps(check_trial(t, campaign.schema).to_dict()) for t in (table, shuffled))

    def numbers(text: str) -> list[float]:
        out: list[float] = []
        json.loads(text, parse_float=lambda x: out.append(float(x)))
        return out

    assert numbers(a) == pytest.approx(numbers(b), rel=1e-6, abs=1e-9)


@pytest.fixture(scope="module")
def hillstrom() -> tuple[RCTTable, DataSchema]:
    root = os.environ.get("LIGHTNING_BUDGET_DATA") or Path(__file__).parents[3] / "shared" / "data"
    path = Path(root) / "hillstrom" / "hillstrom.parquet"
    if not path.exists():
        pytest.skip(f"needs {path} (set LIGHTNING_BUDGET_DATA to the folder that holds hillstrom/)")
    config = OmegaConf.load(Path(__file__).parents[2] / "configs" / "data" / "hillstrom.yaml")
    data = instantiate(OmegaConf.merge(config, {"path": str(path)}))
    return concatenate([data.split(s) for s in ("train", "val", "test")]), data.schema


def test_hillstrom_passes_all_checks(hillstrom: tuple[RCTTable, DataSchema]) -> None:
    found = check_trial(*hillstrom)
    assert found.ok, as_text(found)
    assert [a.rows for a in found.sample_ratio.arms] == [21_306, 21_307, 21_387]
    assert found.sample_ratio.p_value == pytest.approx(0.90, abs=0.005)  # as published
    assert found.balance.largest_smd < 0.02
    assert found.sample_ratio.strata_tested == 13
    assert max(leak.auc for leak in found.leakage.arms if leak.auc is not None) < 0.51


def test_hillstrom_with_a_thinned_arm(hillstrom: tuple[RCTTable, DataSchema], capsys: pytest.CaptureFixture) -> None:
    table, schema = hillstrom
    g = torch.Generator().manual_seed(0)
    keep = (table.treatment != 1) | (torch.rand(len(table), generator=g) < 0.95)
    found = check_trial(table.select(keep.nonzero().flatten()), schema)
    assert found.sample_ratio.p_value < 1e-6
    verdicts = found.verdicts()
    assert [name for name, v in verdicts.items() if not v.ok] == ["sample ratio"]
    print_checks(found)
    printed = capsys.readouterr().out
    assert "1 warning." in printed
    assert "arm 'Mens E-Mail' has 20," in printed


def test_rows_are_told_beside_the_checks() -> None:
    campaign = Campaign(test_rows=2000, users=500)
    table = campaign.partition("test", 0)
    value = np.where(np.arange(2000) % 50 == 0, np.nan, table.value.numpy())
    columns = table.treatment, value, table.propensity
    arms = campaign.schema.treatments
    with pytest.raises(InputError, match="40 rows of 2,000 with missing_outcome"):
        screen_rows(*columns, arms, table.cost)
    keep, rows = screen_rows(*columns, arms, table.cost, exclude=("missing_outcome",))
    found = check_trial(table.select(torch.from_numpy(np.flatnonzero(keep))), campaign.schema, rows)
    assert "40 of 2,000 rows left out as asked (40 missing_outcome)" in as_text(found).replace("\n" + " " * 18, " ")
    assert found.to_dict()["rows"]["excluded"] == 40


def test_unusable_rows_are_refused() -> None:
    campaign = Campaign(test_rows=100, users=50)
    table = campaign.partition("test", 0)
    table.value[3] = float("nan")
    with pytest.raises(InputError, match="value has entries that are not finite"):
        check_trial(table, campaign.schema)
