"""Predictions of other tools judged on a trial: how they are joined, what is found about them, what is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import WandbLogger
from omegaconf import OmegaConf

from lightning_budget import cli
from lightning_budget.batch import ResponsePrediction
from lightning_budget.campaign import Campaign
from lightning_budget.data.columns import TableColumns
from lightning_budget.data.trial import read_rct
from lightning_budget.errors import InputError
from lightning_budget.evaluation import (
    Evaluation,
    PredictionFormat,
    curves_file,
    evaluate,
    ranking,
    read_curves,
    read_predictions,
    write_curves,
)
from lightning_budget.evaluation.render import as_text as rankings_text
from lightning_budget.metrics.functional import (
    CostCurve,
    aucc,
    bootstrap_curves,
    control_value,
    cost_curve,
    matched_interval,
    percentile_interval,
    poisson_weights,
    qini_curve,
    uplift_curve,
)
from lightning_budget.report import compare
from lightning_budget.report.render import as_text
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable
from lightning_budget.trial import check_trial
from scripts import evaluate as script

N, USERS, ARMS = 600, 250, ("none", "small", "large")
FRACTIONS = [0.2, 0.6]
COLUMNS = TableColumns("arm", ARMS, "spend", cost="paid", dense=("age",), user="customer")
DATA = ("data=table", "data.treatment=arm", "data.arms=[none,small,large]", "data.value=spend", "data.cost=paid")
DATA += ("data.dense=[age]", "data.user=customer")


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of users 0, 7, 14, …, some with several; all three arms cost what they promise on average."""
    rng = np.random.default_rng(0)
    arm, age = rng.integers(0, 3, N), rng.normal(size=N)
    columns = {
        "customer": 7 * rng.integers(0, USERS, N),
        "arm": np.array(ARMS)[arm],
        "spend": 2 + np.sqrt(arm) * (1 + 0.5 * age) + rng.normal(size=N),
        "paid": arm * rng.uniform(0.5, 1.5, N),
        "age": age,
    }
    path = tmp_path_factory.mktemp("trial") / "trial.parquet"
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="module")
def whole(trial: Path) -> tuple[RCTTable, DataSchema]:
    splits, schema = read_rct(trial, COLUMNS, (1.0, 0.0, 0.0))
    return splits["train"], schema


def predicted(seed: int = 1, users: int = USERS) -> dict[str, np.ndarray]:
    """One row for each of users 0, 7, …, by the contract."""
    rng = np.random.default_rng(seed)
    value = (2 + np.sqrt(np.arange(3)) + rng.normal(size=(users, 3))).astype(np.float32)
    cost = (np.arange(3) * rng.uniform(0.8, 1.2, (users, 3))).astype(np.float32)
    columns = {f"{n}_{j}": x[:, j] for n, x in (("value", value), ("cost", cost)) for j in range(3)}
    return {"user_id": 7 * np.arange(users), **columns}


def written(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path, **options)
    return path


def matrices(columns: dict[str, Any], rows: np.ndarray) -> ResponsePrediction:
    value, cost = (
        torch.from_numpy(np.stack([columns[f"{n}_{j}"] for j in range(3)], 1)[rows]) for n in ("value", "cost")
    )
    return ResponsePrediction(value, cost)


def same(a: ResponsePrediction, b: ResponsePrediction) -> bool:
    return torch.equal(a.value, b.value) and torch.equal(a.cost, b.cost)


def test_users_are_found_in_any_order(tmp_path: Path, whole: tuple[RCTTable, DataSchema]) -> None:
    table, schema = whole
    # More users than the trial has, in an order of their own, in several row groups.
    columns = predicted(users=USERS + 50)
    shuffled = np.random.default_rng(3).permutation(USERS + 50)
    mixed = {name: x[shuffled] for name, x in columns.items()}
    expected = matrices(columns, (table.user // 7).numpy())
    for name, stored in (("a", columns), ("b", mixed)):
        path = written(tmp_path / f"{name}.parquet", stored, row_group_size=37)
        found = read_predictions(path, table, schema, PredictionFormat())
        assert same(found, expected)
        assert found.value.dtype == torch.float32
    # A folder of partitions, users as text.
    text = {**mixed, "user_id": mixed["user_id"].astype(str)}
    for part, rows in enumerate((slice(0, 100), slice(100, None))):
        (tmp_path / "folder").mkdir(exist_ok=True)
        written(tmp_path / "folder" / f"{part}.parquet", {k: x[rows] for k, x in text.items()})
    assert same(read_predictions(tmp_path / "folder", table, schema, PredictionFormat()), expected)


def test_lists_and_other_names_are_read(tmp_path: Path, whole: tuple[RCTTable, DataSchema]) -> None:
    table, schema = whole
    columns = predicted()
    expected = matrices(columns, (table.user // 7).numpy())
    value, cost = (np.stack([columns[f"{n}_{j}"] for j in range(3)], 1).tolist() for n in ("value", "cost"))
    path = written(tmp_path / "lists.parquet", {"who": columns["user_id"], "v": value, "c": cost})
    found = read_predictions(path, table, schema, PredictionFormat("who", "v", "c"))
    assert same(ResponsePrediction(found.value.float(), found.cost.float()), expected)
    renamed = {f"{k}_hat" if k != "user_id" else k: x for k, x in columns.items()}
    names = [[f"{n}_{j}_hat" for j in range(3)] for n in ("value", "cost")]
    path = written(tmp_path / "named.parquet", renamed)
    assert same(read_predictions(path, table, schema, PredictionFormat("user_id", *names)), expected)


def test_row_order_needs_no_users(tmp_path: Path, whole: tuple[RCTTable, DataSchema]) -> None:
    table, schema = whole
    columns = predicted(users=N)
    del columns["user_id"]
    path = written(tmp_path / "rows.parquet", columns)
    found = read_predictions(path, table, schema, PredictionFormat(row_order=True))
    assert same(found, matrices(columns, np.arange(N)))


def spoiled(change: str) -> dict[str, Any]:
    columns: dict[str, Any] = predicted()
    if change == "missing":
        return {k: x[20:] for k, x in columns.items()}
    if change == "strangers":
        return {**columns, "user_id": columns["user_id"] + 1}
    if change == "duplicates":
        return {k: np.concatenate([x, x[:30], x[:2]]) for k, x in columns.items()}
    if change == "arms":
        return {k: x for k, x in columns.items() if not k.endswith("_2")}
    if change == "gap":
        return {k: x for k, x in columns.items() if k != "cost_1"}
    if change == "nan":
        columns["value_1"] = np.where(np.arange(USERS) < 4, np.nan, columns["value_1"])
    if change == "null":
        columns["cost_2"] = pa.array([None, *columns["cost_2"][1:].tolist()])
    if change == "nobody":
        columns["user_id"] = pa.array([None, *columns["user_id"][1:].tolist()])
    if change == "text":
        columns["value_0"] = columns["value_0"].astype(str)
    return columns


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "no prediction for {20} of {all} users of the split"),
        ("strangers", "no prediction for {all} of {all} users"),
        ("duplicates", "{30} of {all} users of the split have up to 3 rows"),
        ("arms", "predictions for 2 treatments; allowed: 3: none, small, large"),
        ("gap", "no column 'cost_1'"),
        ("nan", "are null or not finite"),
        ("null", "cost are null or not finite"),
        ("nobody", "names no user in 1 of 250 rows"),
        ("text", "'value_0' has type"),
        ("rows", "250 rows of predictions for 600 rows of the split"),
        ("csv", "cannot be read"),
        ("nothing", "no such file"),
    ],
)
def test_bad_files_are_told_in_one_line(
    tmp_path: Path, whole: tuple[RCTTable, DataSchema], change: str, message: str
) -> None:
    table, schema = whole
    path = tmp_path / "bad.parquet"
    if change == "csv":
        path.write_text("user_id,value_0\n1,2\n")
    elif change != "nothing":
        written(path, spoiled(change))
    with pytest.raises(InputError) as caught:
        read_predictions(path, table, schema, PredictionFormat(row_order=change == "rows"))
    users = (table.user // 7).unique()
    for first in (20, 30):
        message = message.replace(f"{{{first}}}", str(int((users < first).sum())))
    assert message.replace("{all}", str(len(users))) in str(caught.value)
    assert "\n" not in str(caught.value)


def call(*overrides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *overrides])
    script.main()


class RecordingWandbLogger(WandbLogger):
    """Takes what W&B would be given, and starts nothing."""

    logged: list[tuple[str, Any]] = []  # noqa: RUF012

    @property
    def experiment(self) -> Any:
        class Run:
            def finish(self) -> None:
                RecordingWandbLogger.logged.append(("finish", None))

        return Run()

    def log_hyperparams(self, params: Any) -> None: ...

    def finalize(self, status: str) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append(("metrics", metrics))

    def log_table(self, key: str, columns: Any = None, data: Any = None, *_: Any) -> None:  # type: ignore[override]
        self.logged.append((key, (columns, data)))

    def log_image(self, key: str, images: list[Any], *_: Any, **__: Any) -> None:  # type: ignore[override]
        self.logged.append((key, images))


def test_predictions_alone_are_judged(
    trial: Path,
    whole: tuple[RCTTable, DataSchema],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table, schema = whole
    paths = {name: written(tmp_path / f"{name}.parquet", predicted(seed)) for name, seed in (("one", 1), ("two", 2))}
    out = tmp_path / "deep" / "out"
    RecordingWandbLogger.logged.clear()
    call(
        *(*DATA, f"data.path={trial}", "split=all", "budgets=[0.2,0.6]", "resamples=60", f"run_dir={out}"),
        f"predictions={{first: {paths['one']}, second: {paths['two']}}}",
        f"+logger.mine._target_={__name__}.RecordingWandbLogger",
        monkeypatch=monkeypatch,
    )
    rows = (table.user // 7).numpy()
    predictions = {"first": matrices(predicted(1), rows), "second": matrices(predicted(2), rows)}
    expected = compare(table, schema, predictions, FRACTIONS, resamples=60)
    found = json.loads((out / "report.json").read_text())
    assert {k: found[k] for k in expected.to_dict()} == expected.to_dict()
    assert (found["split"], found["sources"]["second"]) == ("all", str(paths["two"]))

    shown = capsys.readouterr().out
    assert shown.index("Checks of the experiment") < shown.index("Bootstrap") < shown.index(as_text(expected)[:60])
    assert as_text(expected) in shown
    assert found["checks"]["verdicts"]["sample ratio"]["ok"] is True

    curves = read_curves(out / "curves.parquet")
    assert set(curves) == {"eom_hajek", "eom_ipw"}
    for kind, by_name in curves.items():
        for name, curve in by_name.items():
            assert name in ("first", "second", "uniform")
            read = [row[kind] for row in found["rows"] if row["method"] == name]
            assert curve.at_budget(found["budgets"]).value.tolist() == read

    names = ["calibration.png", "calibration.svg", "curves.parquet", "curves.png", "curves.svg", "rankings.png"]
    assert sorted(p.name for p in out.iterdir()) == [*names, "rankings.svg", "report.json"]
    for picture in ("curves", "rankings", "calibration"):
        assert (out / f"{picture}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert "</svg>" in (out / f"{picture}.svg").read_text()

    logged = dict(RecordingWandbLogger.logged)
    assert list(logged)[-1] == "finish"
    assert logged["metrics"]["all/eom_hajek/second@0.6"] == found["rows"][-1]["eom_hajek"]
    assert logged["all/picture/calibration"] == [str(out / "calibration.png")]
    columns, data = logged["all/table/outcomes"]
    for row, told in zip(data, found["rows"], strict=True):
        assert dict(zip(columns, row, strict=True)) == dict.fromkeys(columns) | told
    assert {"all/table/" + t for t in ("checks", "differences", "served", "curves", "bands", "increments")} <= set(
        logged
    )
    assert {"all/table/" + t for t in ("areas", "rankings", "ranking_differences", "calibration")} <= set(logged)


def test_requests_that_cannot_be_met_write_nothing(
    trial: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    good, bad = (written(tmp_path / f"{n}.parquet", x) for n, x in (("g", predicted()), ("b", spoiled("missing"))))
    data = (*DATA, f"data.path={trial}")
    before = sorted(tmp_path.rglob("*"))
    for overrides, message in (
        ((f"predictions={good}",), "no data set"),
        ((*data, f"predictions={{oracle: {good}}}"), "'oracle'"),
        ((*data, f"predictions={good}", "split=al"), "split 'al'; allowed: train, val, test, all"),
        ((*data, f"predictions={bad}", "split=all"), "no prediction for"),
    ):
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            call(*overrides, monkeypatch=monkeypatch)
        error = capfd.readouterr().err
        assert caught.value.code == 2, error
        assert message in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before


def test_rows_left_out_as_asked_are_told_and_keep_their_numbers(tmp_path: Path) -> None:
    arm, gone = np.arange(90) % 3, np.arange(90) < 10
    columns = {
        "arm": np.array(ARMS)[arm],
        "spend": np.where(gone, np.nan, 1.0 + arm),
        "paid": 1.0 * arm,
        "age": arm / 2,
    }
    path = written(tmp_path / "trial.parquet", columns)
    settings = [*(x for x in DATA if "user" not in x), f"data.path={path}", "data.exclude=[missing_outcome]"]
    with initialize_config_dir(str(cli.config_dir().resolve()), version_base="1.3"):
        config = compose("evaluate", settings)
    datamodule, table, schema = script.load_split(config.data, [], "all")
    assert table.user.tolist() == list(range(10, 90))
    told = check_trial(table, schema, getattr(datamodule, "screened", None)).to_dict()["rows"]
    assert (told["excluded"], told["total"]) == (10, 90)
    numbered = {**predicted(users=90), "user_id": np.arange(90)}
    found = read_predictions(written(tmp_path / "p.parquet", numbered), table, schema, PredictionFormat())
    assert same(found, matrices(numbered, np.arange(10, 90)))


def test_files_and_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    a, b, csv = tmp_path / "a.parquet", tmp_path / "b" / "a.parquet", tmp_path / "a.csv"
    for path in (a, b, csv):
        path.touch()
    assert script.prediction_paths(None) == {}
    assert script.prediction_paths(str(a)) == {"a": a}
    assert script.prediction_paths(OmegaConf.create([str(a), str(b.parent)])) == {"a": a, "b": b.parent}
    assert script.prediction_paths(OmegaConf.create({"one": str(a), "two": str(b)})) == {"one": a, "two": b}
    assert script.all_names([tmp_path / "phase" / "best.ckpt"], {"a": a}) == ["phase", "a"]
    for refused, message in (
        (OmegaConf.create([str(a), str(b)]), "of one name"),
        (OmegaConf.create({"m": [str(a)]}), "predictions.m"),
        (str(csv), "Parquet"),
        (str(tmp_path / "no.parquet"), "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            script.prediction_paths(refused)
    with pytest.raises(InputError, match="neither ckpt nor predictions"):
        script.all_names([], {})
    with pytest.raises(InputError, match="named 'phase'"):
        script.all_names([tmp_path / "phase" / "best.ckpt"], {"phase": a})


CAMPAIGN = Campaign(test_rows=3000, users=800, uniform=False)


@pytest.fixture(scope="module")
def judged() -> tuple[RCTTable, dict[str, ResponsePrediction], Evaluation]:
    table = CAMPAIGN.partition("test", 0)
    assert table.true_value is not None
    assert table.true_cost is not None
    noise = torch.randn(table.true_value.shape, generator=torch.Generator().manual_seed(0))
    right = ResponsePrediction(table.true_value, table.true_cost)
    predictions = {"right": right, "noisy": ResponsePrediction(right.value + 3 * noise, right.cost)}
    return table, predictions, evaluate(table, CAMPAIGN.schema, predictions, FRACTIONS, resamples=60)


def test_bands_hold_the_curve_and_change_nothing(judged: tuple[Any, ...]) -> None:
    table, predictions, found = judged
    assert compare(table, CAMPAIGN.schema, predictions, FRACTIONS, resamples=60).to_dict() == found.report.to_dict()
    for band in found.bands:
        assert len(band.budget) >= 20
        assert band.budget[-1] == pytest.approx(1.1 * found.report.budgets[-1])
        curve = found.curves["eom_hajek"][band.method]
        assert band.value == curve.at_budget(band.budget).value.tolist()
        p = predictions[band.method]
        outcomes = (table.user, table.value, table.cost, table.propensity)
        drawn = bootstrap_curves(matched_interval(p.value, p.cost, table.treatment), *outcomes, band.budget, 60)
        assert [band.low, band.high] == [end.tolist() for end in percentile_interval(drawn)]


def test_areas_are_means_of_shares(judged: tuple[Any, ...]) -> None:
    table, _, found = judged
    areas = {(a.kind, a.method): a for a in found.areas}
    assert areas["true", "right"].area == pytest.approx(areas["true", "oracle"].area)
    assert areas["true", "oracle"].area > areas["true", "noisy"].area > 0.5
    for (kind, method), a in areas.items():
        budgets = np.linspace(0, a.free_spend, 20_001)[1:]
        value = found.curves[kind][method].at_budget(budgets).value.numpy()
        assert a.area == pytest.approx(((value - a.base_value) / (a.free_value - a.base_value)).mean(), abs=1e-3)
    base = control_value(table.treatment, table.value, table.propensity)
    assert areas["eom_hajek", "right"].base_value == pytest.approx(float(base))
    # Without a known optimum: everyone at the best arm.
    blind = table.without_oracle()
    predictions = {"m": ResponsePrediction(table.true_value, table.true_cost)}
    (uniform, _) = evaluate(blind, CAMPAIGN.schema, predictions, FRACTIONS, resamples=2).areas
    best = max((i for i in found.increments), key=lambda i: i.value)
    assert uniform.free_value - uniform.base_value == pytest.approx(best.value)
    assert uniform.free_spend == pytest.approx(best.cost)


def test_ranking_measures_of_resamples_are_those_of_repeated_rows(judged: tuple[Any, ...]) -> None:
    table, predictions, _ = judged
    p, arm = predictions["noisy"], 3
    uniform = RCTTable(**{**vars(table), "propensity": torch.full_like(table.propensity, 0.2)})
    pair = ranking._pair(uniform, arm)
    drawn = ranking._measure(pair, {"noisy": p}, 3, 0)["noisy"].samples
    value, cost = (x[:, arm] - x[:, 0] for x in (p.value, p.cost))
    for r, counts in enumerate(poisson_weights(pair.user, 3, 0)):
        rows = pair.row.repeat_interleave(counts.long())
        treated = (table.treatment[rows] == arm).long()
        y, c = table.value[rows], table.cost[rows]
        expected = aucc(treated, y, c, value_gain_hat=value[rows], cost_gain_hat=cost[rows])
        assert float(drawn["aucc"][r]) == pytest.approx(float(expected), rel=1e-9)
        assert float(drawn["auuc"][r]) == pytest.approx(float(uplift_curve(value[rows], treated, y).area), rel=1e-9)
        above = qini_curve(value[rows], treated, y).above_random
        assert float(drawn["qini"][r]) == pytest.approx(float(above), rel=1e-9)


def test_rankings_and_their_differences_have_intervals_of_one_bootstrap(judged: tuple[Any, ...]) -> None:
    table, predictions, found = judged
    by_name = {(r.method, r.arm): r for r in found.rankings}
    assert [d.arm for d in found.ranking_differences] == list(CAMPAIGN.schema.treatments[1:])
    for j, d in enumerate(found.ranking_differences, 1):
        assert (d.method, d.baseline, d.resamples) == ("noisy", "right", 60)
        measured = ranking._measure(ranking._pair(table, j), predictions, 60, 0)
        for what in ("aucc", "auuc", "qini"):
            b_of = by_name["right", d.arm]
            paired, a, b = (getattr(x, what) for x in (d, by_name["noisy", d.arm], b_of))
            samples = [measured[name].samples[what] for name in ("noisy", "right")]
            if paired is None:
                assert not all(bool(x.isfinite().all()) for x in samples)
                continue
            assert paired.estimate == pytest.approx(a - b, abs=1e-12)
            assert paired.standard_error == float((samples[0] - samples[1]).std())
            for ends, drawn in (
                ((paired.low, paired.high), samples[0] - samples[1]),
                ((getattr(b_of, f"{what}_low"), getattr(b_of, f"{what}_high")), samples[1]),
            ):
                assert list(ends) == [float(x) for x in percentile_interval(drawn)]
    assert any(d.aucc is not None for d in found.ranking_differences)
    shown = rankings_text(found)
    first = found.ranking_differences[-1]
    assert first.aucc is not None
    assert f"({first.aucc.low:z.3f} … {first.aucc.high:z.3f})" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_too_few_resamples_make_no_interval(judged: tuple[Any, ...]) -> None:
    table, predictions, found = judged
    alone, differences = ranking.rankings(table, CAMPAIGN.schema, predictions, 49, 0)
    assert differences == []
    assert [(r.aucc, r.qini) for r in alone] == [(r.aucc, r.qini) for r in found.rankings]
    assert {(r.aucc_low, r.auuc_high, r.qini_low) for r in alone} == {(None, None, None)}


def test_calibration_tells_a_shift(judged: tuple[Any, ...]) -> None:
    table, predictions, found = judged
    shifted = {"m": ResponsePrediction(predictions["right"].value + 5, 2 * predictions["right"].cost)}
    moved = evaluate(table, CAMPAIGN.schema, shifted, FRACTIONS, resamples=2).calibration
    for c in (c for c in found.calibration if c.method == "right"):
        (m,) = (m for m in moved if (m.outcome, m.arm) == (c.outcome, c.arm))
        assert m.observed == pytest.approx(c.observed)
        assert sum(c.rows) == int((table.treatment == CAMPAIGN.schema.treatments.index(c.arm)).sum())
        for a, b, y, e in zip(c.prediction, m.prediction, c.observed, c.standard_error, strict=True):
            assert b == pytest.approx(a + 5 if c.outcome == "value" else 2 * a, rel=1e-5)
            assert e is not None
            assert abs(y - a) < 5 * e + 1e-9
    control = next(c for c in found.calibration if (c.outcome, c.arm) == ("cost", "control"))
    assert (control.prediction, control.observed, control.slope) == ([0.0], [0.0], None)


def test_report_is_plain_json_and_numbers_are_finite(judged: tuple[Any, ...]) -> None:
    found = judged[2]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["increments"][0]["arm"] == "coupon_2"
    numbers = found.numbers()
    assert all(np.isfinite(list(numbers.values())))
    assert {"test/check/sample_ratio", "test/area/true/right", "test/qini/noisy/coupon_7"} <= set(numbers)
    assert {"test/increment/coupon_4/roi", "test/calibration/cost/right/coupon_11"} <= set(numbers)


def test_long_curves_are_thinned_and_keep_their_ends(
    judged: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = judged[2].curves
    write_curves(curves, tmp_path / "whole.parquet")
    monkeypatch.setattr(curves_file, "POINTS", 100)
    write_curves(curves, tmp_path / "thin.parquet")
    whole, thin = (read_curves(tmp_path / f"{n}.parquet") for n in ("whole", "thin"))
    for kind, by_name in curves.items():
        for name, curve in by_name.items():
            for field in ("multiplier", "spend", "value"):
                assert torch.equal(getattr(whole[kind][name], field), getattr(curve, field))
                kept = getattr(thin[kind][name], field)
                assert len(kept) <= 100
                assert [kept[0], kept[-1]] == [getattr(curve, field)[0], getattr(curve, field)[-1]]


def test_a_curve_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(1, dtype=torch.float64)
    curves = {"true": {"m": CostCurve(one / 0, one, one)}}
    write_curves(curves, tmp_path / "c.parquet")
    before = (tmp_path / "c.parquet").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_curves(curves, tmp_path / "c.parquet")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [before]


def test_progress_passes_everything_on() -> None:
    passing: Callable[..., Any] = script.progress
    assert list(passing([1, 2], "Counting")) == [1, 2]
    assert list(passing([], "Nothing")) == []


def test_a_trial_that_curves_accept_needs_no_more(whole: tuple[RCTTable, DataSchema]) -> None:
    # One row of an arm: no standard error of its increment, and no measure that needs one fails.
    table, schema = whole
    rows = torch.cat([(table.treatment != 2).nonzero()[:, 0], (table.treatment == 2).nonzero()[:1, 0]])
    few = table.select(rows)
    p = matrices(predicted(), (few.user // 7).numpy())
    found = evaluate(few, schema, {"m": p}, FRACTIONS, resamples=2)
    assert found.increments == []
    assert [e for c in found.calibration if c.arm == "large" for e in c.standard_error] == [None, None]
    curve = cost_curve(p.value, p.cost, few.treatment, few.value, few.cost, few.propensity)
    assert torch.equal(found.curves["eom_hajek"]["m"].value, curve.value)
    json.dumps(found.to_dict(), allow_nan=False)
