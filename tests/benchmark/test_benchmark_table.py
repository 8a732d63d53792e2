"""Figures of the table against plain loops, on cells made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scipy import stats

from lightning_budget.batch import ResponsePrediction
from lightning_budget.benchmark import paired
from lightning_budget.benchmark.figure import differences_figure
from lightning_budget.benchmark.markdown import document
from lightning_budget.benchmark.paired import T, against, best_two_stage, interval
from lightning_budget.benchmark.results import Results
from lightning_budget.benchmark.store import Store
from lightning_budget.benchmark.suite import Cell, DataSet, Suite
from lightning_budget.benchmark.verdict import LARGE, closed, findings, last_line, regret_closed
from lightning_budget.metrics.functional import eom_hajek
from lightning_budget.table import RCTTable
from tests.random_trials import random_table

KINDS = {"tarnet": "two_stage", "slow": "two_stage", "ppl": "published", "default": "default"}
SEEDS = (0, 1, 2)
FRACTIONS = (0.05, 0.1, 0.2, 0.3, 0.5)


def cell(value: list[float], seed: int, kind: str, validation: float, oracle: bool = True, rows: int = LARGE) -> Any:
    names = {"control": [1.0 + seed] * 5, "uniform": [1.5 + seed] * 5, "method": value}
    names |= {"oracle": [9.0 + seed + 0.5 * b for b in range(5)]} if oracle else {}
    policies: dict[str, Any] = {n: {"eom_hajek": v} | ({"true": v} if oracle else {}) for n, v in names.items()}
    policies["method"] |= {"low": value, "high": value}
    budgets = [0.1 * (b + 1) for b in range(5)]
    found = {"kind": kind, "validation": validation, "settings": ["a"], "trial": 0, "epochs": 6, "seconds": 9.0}
    found |= {"cpu_seconds": 8.0, "seconds_of_all": 9.0, "parameters": 10, "train_rows": rows, "val_rows": 3}
    found |= {"test_rows": 4, "arms": 2, "value_unit": "spend", "has_oracle": oracle, "fractions": list(FRACTIONS)}
    return found | {"budgets": budgets, "policies": policies, "aucc": None}


def suite(folder: Path = Path("nowhere"), datasets: tuple[str, ...] = ("d",)) -> Suite:
    return Suite(
        folder, folder, {d: DataSet(d, (), "about it") for d in datasets}, tuple(KINDS), SEEDS, 1, resamples=60
    )


def random_results(seed: int = 0, lift: float = 0.0, **of: Any) -> Results:
    rng = np.random.default_rng(seed)
    found = {}
    for method, kind in KINDS.items():
        for s in SEEDS:
            gain = lift if method == "default" else 0.0
            value = (rng.uniform(3.0, 4.0, 5) + s + gain).tolist()
            found[Cell("d", method, s)] = cell(value, s, kind, {"tarnet": 2.0, "slow": 1.0}.get(method, 9.0), **of)
    return Results(suite(), found)


def test_share_of_regret_closed_is_that_of_a_loop() -> None:
    results = random_results(1, lift=2.0)
    by_seed = []
    for s in SEEDS:
        shares = []
        for b in range(5):
            cells = [results.found[Cell("d", m, s)]["policies"] for m in ("default", "tarnet")]
            value, two_stage = (policies["method"]["true"][b] for policies in cells)
            oracle = results.found[Cell("d", "slow", s)]["policies"]["oracle"]["true"][b]
            shares.append((value - two_stage) / (oracle - two_stage))
        by_seed.append(sum(shares) / 5)
    found = closed(results, "d", "default", "tarnet")
    assert found is not None
    assert found.by_seed == pytest.approx(by_seed)
    assert found.mean == pytest.approx(mean(by_seed))
    half = stats.t.ppf(0.975, 2) * stdev(by_seed) / math.sqrt(3)
    assert (found.low, found.high) == pytest.approx((mean(by_seed) - half, mean(by_seed) + half), rel=1e-3)
    assert regret_closed([2.0], [2.0], [2.0]) is None
    assert regret_closed([3.0, 5.0], [2.0, 4.0], [4.0, 6.0]) == 0.5


def test_quantiles_are_students() -> None:
    assert [stats.t.ppf(0.975, n + 1) for n in range(len(T))] == pytest.approx(list(T), abs=6e-4)
    low, high = interval([1.0, 2.0, 4.0, 7.0])
    expected = stats.t.interval(0.95, 3, 3.5, stdev([1.0, 2.0, 4.0, 7.0]) / 2)
    assert (low, high) == pytest.approx(expected, rel=1e-3)


def test_differences_are_paired_by_seed() -> None:
    results = random_results(2, lift=0.3)
    found = against(results, "d", "default", "tarnet")
    assert found is not None
    for b in range(5):
        gaps = [results.values("d", "default", s)[b] - results.values("d", "tarnet", s)[b] for s in SEEDS]
        assert found.estimate[b] == pytest.approx(mean(gaps))
        assert (found.low[b], found.high[b]) == pytest.approx(interval(gaps))
    means = [mean(results.values("d", "default", s)) - mean(results.values("d", "tarnet", s)) for s in SEEDS]
    assert (found.mean, found.mean_low, found.mean_high) == pytest.approx((mean(means), *interval(means)))
    assert found.seeds == SEEDS


def test_a_data_set_with_seeds_of_its_own_shows_those_alone() -> None:
    results = random_results(4)
    own = replace(results.suite, datasets={"d": replace(results.suite.datasets["d"], seeds=(1, 2, 9))})
    found = Results(own, {c: n for c, n in results.found.items() if c.seed in own.seeds_of("d")})
    assert found.seeds("d", "default") == [1, 2]
    assert {row["seed"] for row in found.rows()} == {1, 2, 9}
    text = document(found, findings(found))
    assert " Seeds: 1, 2, 9." in text
    assert "| 2 of 3 |" in text
    assert text.count("Seeds: ") == 2
    assert document(results, findings(results)).count("Seeds: ") == 1, "the suite's, once"


def test_best_two_stage_goes_by_validation_and_by_finished_cells() -> None:
    results = random_results(3)
    for s in SEEDS:
        results.found[Cell("d", "slow", s)]["policies"]["method"]["true"] = [8.0] * 5  # type: ignore[index]
    assert best_two_stage(results, "d") == "tarnet", "slow is better on test, worse on validation"
    fewer = Results(results.suite, {c: n for c, n in results.found.items() if c != Cell("d", "tarnet", 1)})
    assert best_two_stage(fewer, "d") == "slow"
    assert best_two_stage(Results(results.suite, {}), "d") is None


@pytest.mark.parametrize(
    ("lift", "starts", "texts"),
    [
        (5.0, "holds", ["asked for 50%", "worse at no budget", "ppl"]),
        (-0.05, "falls short: d: default closes -", ["worse at no budget"]),
        (-3.0, "falls short: d: default closes -", ["worse at 5 of 5 budgets"]),
    ],
)
def test_what_must_hold_of_a_large_data_set_with_an_oracle(lift: float, starts: str, texts: list[str]) -> None:
    found = findings(random_results(4, lift))
    assert len(found) == 4
    assert last_line(found).startswith(starts)
    for text in texts:
        assert any(text in f.text for f in found)


def test_elsewhere_default_must_not_be_worse_beyond_the_interval() -> None:
    small = {"rows": LARGE - 1}
    assert [f.holds for f in findings(random_results(5, -0.1, **small))] == [True, False, False]
    worse = findings(random_results(5, -2.0, **small))
    assert [f.holds for f in worse] == [False, False, False]
    assert last_line(worse).startswith("falls short: d: default minus tarnet -1.97 (")


@pytest.mark.parametrize(("lift", "holds"), [(-3.0, False), (3.0, True)])
def test_the_goal_must_not_take_from_its_learner(lift: float, holds: bool) -> None:
    results = random_results(4, lift)
    for s in SEEDS:
        results.found[Cell("d", "default_two_stage", s)] = results.found[Cell("d", "slow", s)] | {"kind": "ablation"}
    found = [f for f in findings(results) if "goal" in f.text]
    gaps = [mean(results.values("d", "default", s)) - mean(results.values("d", "slow", s)) for s in SEEDS]
    assert f"what the goal adds to its learner {mean(gaps):+.4g} (" in found[0].text
    assert [f.holds for f in found] == [holds]


def test_rivals_are_compared_by_shares_of_the_gain_and_of_control_s_value() -> None:
    results = random_results(6, lift=1.0)
    gains = {
        m: mean([mean(results.values("d", m, s)) - (1.0 + s) for s in SEEDS]) for m in ("default", "ppl", "tarnet")
    }
    rivals = [f for f in findings(results) if "ppl" in f.text]
    units = ((gains["tarnet"], "two-stage's gain over control"), (mean([1.0 + s for s in SEEDS]), "control's value"))
    for rival, (scale, unit) in zip(rivals, units, strict=True):
        ours, theirs = (gains[m] / scale for m in ("default", "ppl"))
        assert f"{ours:.2%}, ppl {theirs:.2%} of {unit}, mean over 1 data sets" in rival.text
        assert rival.holds == (ours >= theirs)


def test_missing_cells_are_told_and_are_no_zeros(tmp_path: Path) -> None:
    whole = random_results(7)
    kept = {c: n for c, n in whole.found.items() if c.method not in ("ppl", "default") and c.seed != 2}
    results = Results(suite(tmp_path), kept)
    Store(tmp_path).tell(Cell("d", "ppl", 0), "skipped", "needs arms=2, here it is 5")
    text = document(results, findings(results))
    assert "| default |  | 0 | — | missing |" in text
    assert "| ppl |  | 0 | — | skipped: needs arms=2, here it is 5 |" in text
    assert "| **tarnet** | two_stage | 2 of 3 |" in text
    assert last_line(findings(results)) == "undecided: d: no cell of default"
    results.write(tmp_path / "r.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "r.parquet").to_pylist()
    assert len(rows) == 4 * 5 + 2 + 6
    absent = [r for r in rows if r["state"] != "done"]
    assert {(r["method"], r["state"]) for r in absent} >= {
        ("ppl", "skipped"),
        ("default", "missing"),
        ("slow", "missing"),
    }
    assert all(r["true_value"] is None and r["eom_hajek"] is None and r["validation"] is None for r in absent)
    assert document(Results(suite(tmp_path), {}), []).count("no cell is finished") == 1
    assert last_line([]).startswith("undecided")


def test_pictures_have_a_panel_for_each_data_set_with_two_stage_cells() -> None:
    results = random_results(8)
    both = Results(suite(datasets=("d", "e")), results.found)
    axes = [ax for ax in differences_figure(both).axes if ax.axison]
    assert [ax.get_title(loc="left") for ax in axes] == ["d"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == list(KINDS)
    assert len(differences_figure(Results(suite(), {})).axes) == 1


def trial_on_disk(folder: Path, oracle: bool) -> Results:
    """Two seeds with the same test rows, and predictions of two methods."""
    table = random_table(400, 3, seed=0, oracle=oracle)
    table.cost[table.treatment == 0] = 0
    if table.true_cost is not None:
        table.true_cost[:, 0] = 0
    generator = torch.Generator().manual_seed(1)
    asked = suite(folder)
    store, found = Store(folder), {}
    budgets = [0.05, 0.1, 0.15, 0.2, 0.25]
    for s in (0, 1):
        store.write_rows("d", s, table)
    for method in ("tarnet", "default"):
        prediction = ResponsePrediction(*(torch.rand(400, 3, generator=generator) for _ in range(2)))
        prediction.cost[:, 0] = 0
        logged = (table.treatment, table.value, table.cost, table.propensity)
        value = eom_hajek(prediction.value, prediction.cost, *logged, budgets=budgets).value.tolist()
        for s in (0, 1):
            store.write_predictions(Cell("d", method, s), prediction)
            found[Cell("d", method, s)] = cell(value, s, KINDS[method], 1.0, oracle) | {"budgets": budgets}
    return Results(asked, found)


def test_without_an_oracle_users_are_resampled_equally_in_all_seeds(tmp_path: Path) -> None:
    both = trial_on_disk(tmp_path, oracle=False)
    one = Results(both.suite, {c: n for c, n in both.found.items() if c.seed == 0})
    a, b = (against(r, "d", "default", "tarnet") for r in (one, both))
    assert a is not None
    assert b is not None
    # Equal test splits are no more evidence than one of them.
    assert [*b.low, *b.high, b.mean_low, b.mean_high] == pytest.approx([*a.low, *a.high, a.mean_low, a.mean_high])
    assert all(low < e < high for low, e, high in zip(a.low, a.estimate, a.high, strict=True))
    same = against(both, "d", "default", "default")
    assert same is not None
    assert (same.mean, same.mean_low, same.mean_high) == (0, 0, 0)


def test_one_seed_with_an_oracle_has_the_interval_of_its_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = trial_on_disk(tmp_path, oracle=True)
    one = Results(both.suite, {c: n for c, n in both.found.items() if c.seed == 0})
    seen = []
    real = paired.paired_oracle_difference
    monkeypatch.setattr(paired, "paired_oracle_difference", lambda *a, **k: seen.append(a) or real(*a, **k))
    found = against(one, "d", "default", "tarnet")
    assert found is not None
    assert len(seen) == 1
    assert found.mean_low < found.mean_high
    against(both, "d", "default", "tarnet")
    assert len(seen) == 1, "several seeds have an interval over seeds"


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    table = random_table(50, 3, seed=3, oracle=True)
    store = Store(tmp_path)
    store.write_rows("d", 0, table)
    back: RCTTable = store.rows("d", 0)
    for name in ("user", "treatment", "value", "cost", "propensity", "true_value", "true_cost"):
        assert torch.equal(getattr(back, name), getattr(table, name)), name
