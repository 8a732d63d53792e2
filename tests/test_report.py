"""The comparison at the end of a run: numbers by hand, what must be absent, what is written and printed."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from lightning_budget.batch import ResponsePrediction
from lightning_budget.campaign import Campaign
from lightning_budget.errors import InputError
from lightning_budget.metrics.functional import matched_interval, paired_difference, uniform_true_curve
from lightning_budget.report import Report, as_text, compare, print_report, render, sentences, write_report
from lightning_budget.schema import DataSchema
from lightning_budget.table import RCTTable

FRACTIONS = (0.05, 0.1, 0.3, 0.5, 1.0)
CAMPAIGN = Campaign(test_rows=4000, users=1500, uniform=False)


def noisy(table: RCTTable, scale: float, seed: int) -> ResponsePrediction:
    generator = torch.Generator().manual_seed(seed)
    assert table.true_value is not None
    assert table.true_cost is not None
    value = table.true_value + scale * torch.randn(table.true_value.shape, generator=generator)
    cost = table.true_cost * (1 + 0.3 * torch.rand(table.true_cost.shape, generator=generator))
    return ResponsePrediction(value, cost)


@pytest.fixture(scope="module")
def table() -> RCTTable:
    return CAMPAIGN.partition("test", 0)


@pytest.fixture(scope="module")
def predictions(table: RCTTable) -> dict[str, ResponsePrediction]:
    return {"two_stage": noisy(table, 2.0, 1), "end_to_end": noisy(table, 0.5, 2)}


@pytest.fixture(scope="module")
def report(table: RCTTable, predictions: dict[str, ResponsePrediction]) -> Report:
    return compare(table, CAMPAIGN.schema, predictions, FRACTIONS, resamples=50)


@pytest.fixture(scope="module")
def blind(table: RCTTable, predictions: dict[str, ResponsePrediction]) -> Report:
    return compare(table.without_oracle(), CAMPAIGN.schema, predictions, FRACTIONS, resamples=50)


def rows_of(report: Report, method: str) -> list[dict[str, Any]]:
    return [row for row in report.to_dict()["rows"] if row["method"] == method]


# Two users, arms control and gift; gift costs 1, gains user 0 two and user 1 one. The trial gave it to user 0 alone.
TINY_SCHEMA = DataSchema(("control", "gift"), value_unit="points", cost_unit="euro")
TINY = RCTTable(
    user=torch.tensor([0, 1]),
    dense=torch.zeros(2, 0),
    ids={},
    treatment=torch.tensor([1, 0]),
    value=torch.tensor([3.0, 1.0]),
    cost=torch.tensor([1.0, 0.0]),
    propensity=torch.tensor([0.5, 0.5]),
    true_value=torch.tensor([[1.0, 3.0], [1.0, 2.0]]),
    true_cost=torch.tensor([[0.0, 1.0], [0.0, 1.0]]),
)
RIGHT = ResponsePrediction(torch.tensor([[1.0, 3.0], [1.0, 2.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
WRONG = ResponsePrediction(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def tiny(predictions: Mapping[str, ResponsePrediction], **options: Any) -> Report:
    return compare(TINY, TINY_SCHEMA, predictions, [0.25, 0.5, 1.0], resamples=10, **options)


@pytest.mark.parametrize(
    ("method", "value", "spend", "roi", "regret"),
    [
        ("control", [1, 1, 1], [0, 0, 0], [None] * 3, [0.5, 1.0, 1.5]),
        ("uniform", [1.375, 1.75, 2.5], [0.25, 0.5, 1.0], [1.5, 1.5, 1.5], [0.125, 0.25, 0]),
        ("wrong", [1.25, 1.5, 2.5], [0.25, 0.5, 1.0], [1.0, 1.0, 1.5], [0.25, 0.5, 0]),
        ("oracle", [1.5, 2.0, 2.5], [0.25, 0.5, 1.0], [2.0, 2.0, 1.5], [0, 0, 0]),
    ],
)
def test_true_outcomes_by_hand(
    method: str, value: list[float], spend: list[float], roi: list[float | None], regret: list[float]
) -> None:
    found = rows_of(tiny({"wrong": WRONG}), method)
    for name, expected in (("value", value), ("spend", spend), ("roi", roi), ("regret", regret)):
        assert [row[f"true_{name}"] for row in found] == pytest.approx(expected, abs=1e-12), name


def test_eom_by_hand() -> None:
    """Matched rows of RIGHT: user 1 while λ ≥ 2, both down to 1, user 0 below; weights are 2."""
    right = rows_of(tiny({"right": RIGHT}), "right")[1]
    assert (right["eom_hajek"], right["eom_hajek_spend"], right["eom_hajek_roi"]) == pytest.approx((2.0, 0.5, 2.0))
    # ipw: (0, 1) at control, (1, 4) with both rows; half of the way.
    assert (right["eom_ipw"], right["eom_ipw_spend"], right["eom_ipw_roi"]) == pytest.approx((2.5, 0.5, 3.0))
    uniform = rows_of(tiny({"right": RIGHT}), "uniform")[1]
    assert (uniform["eom_hajek"], uniform["eom_hajek_roi"]) == pytest.approx((2.0, 2.0))


def test_deployment_by_hand() -> None:
    served = {(d.method, d.fraction): d for d in tiny({"wrong": WRONG}).deployments}
    assert len(served) == 6
    half = served["oracle", 0.5]
    assert (half.multiplier, half.predicted_spend, half.factual_spend) == (1.0, 0.5, 0.5)
    assert half.share == {"control": 0.5, "gift": 0.5}
    assert served["wrong", 0.25].share == {"control": 1.0, "gift": 0.0}
    assert (served["wrong", 1.0].multiplier, served["wrong", 1.0].factual_spend) == (0.0, 1.0)


def test_miscalibrated_cost_shows_in_factual_spend() -> None:
    cheap = ResponsePrediction(RIGHT.value, RIGHT.cost / 2)
    half = tiny({"cheap": cheap}).deployments[2]
    assert (half.method, half.fraction, half.predicted_spend, half.factual_spend) == ("cheap", 0.5, 0.5, 1.0)
    blind = compare(TINY.without_oracle(), TINY_SCHEMA, {"cheap": cheap}, [0.5], resamples=5).deployments[0]
    assert (blind.factual_source, blind.factual_spend) == ("hajek", 1.0)


def test_unaffordable_budget_serves_the_cheapest_arms() -> None:
    dear = ResponsePrediction(RIGHT.value, RIGHT.cost + 0.4)
    low, high = (d for d in tiny({"dear": dear}).deployments if d.method == "dear" and d.fraction < 1)
    assert (low.multiplier, low.share["control"]) == (None, 1.0)
    assert high.multiplier is not None
    assert (
        json.loads(json.dumps(tiny({"dear": dear}).to_dict(), allow_nan=False))["deployments"][0]["multiplier"] is None
    )


def test_free_spend_and_its_source() -> None:
    assert (tiny({"m": RIGHT}).free_spend, tiny({"m": RIGHT}).budgets) == (1.0, [0.25, 0.5, 1.0])
    assert "optimum" in tiny({"m": RIGHT}).free_spend_source
    given = tiny({"m": RIGHT}, free_spend=2.0)
    assert (given.free_spend_source, given.budgets) == ("given", [0.5, 1.0, 2.0])
    assert rows_of(given, "oracle")[2]["true_spend"] == 1.0  # money is left over
    blind = compare(TINY.without_oracle(), TINY_SCHEMA, {"m": RIGHT}, [1.0], resamples=5)
    assert (blind.free_spend, "'gift'" in blind.free_spend_source) == (1.0, True)


def test_free_optimum_prefers_the_cheaper_of_equally_good_arms() -> None:
    table = replace(TINY, true_value=torch.ones(2, 2) * 2, true_cost=torch.tensor([[1.0, 3.0], [3.0, 1.0]]))
    assert compare(table, TINY_SCHEMA, {"m": RIGHT}, [1.0], resamples=5).free_spend == 1.0


def test_without_oracle_nothing_tells_of_it(report: Report, blind: Report) -> None:
    def names(x: Any) -> set[str]:
        if isinstance(x, dict):
            return set(x).union(*map(names, x.values()))
        return set().union(*map(names, x)) if isinstance(x, list) else {x} if isinstance(x, str) else set()

    def of_truth(r: Report) -> set[str]:
        return {n for n in names(r.to_dict()) if n.startswith("true") or n == "oracle"}

    assert {"oracle", "true_value", "true_spend", "true_roi", "true_regret"} <= of_truth(report)
    assert of_truth(blind) == set()
    assert not any("true" in name or "oracle" in name for name in blind.numbers())
    assert "true" not in as_text(blind).replace("true or", "")
    assert "oracle" not in as_text(blind)


def test_json_round_trip(report: Report, blind: Report) -> None:
    for r in (report, blind):
        plain = r.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert len(plain["rows"]) == len(FRACTIONS) * (4 + r.has_oracle)
        assert list(plain["arm_share"]) == list(CAMPAIGN.schema.treatments)
        assert sum(plain["arm_share"].values()) == pytest.approx(1)
    assert (report.row_count, 0 < report.user_count <= CAMPAIGN.users) == (4000, True)


def test_oracle_dominates_and_control_is_free(report: Report) -> None:
    best = rows_of(report, "oracle")
    for method in ("control", "uniform", "two_stage", "end_to_end"):
        for row, top in zip(rows_of(report, method), best, strict=True):
            assert row["true_value"] <= top["true_value"] + 1e-9
            assert row["true_regret"] == pytest.approx(top["true_value"] - row["true_value"])
            assert row["true_spend"] <= row["budget"] * (1 + 1e-12)
    for row in rows_of(report, "control"):
        assert row["true_spend"] == row["eom_hajek_spend"] == row["eom_ipw_spend"] == 0
        assert row["true_roi"] is row["eom_hajek_roi"] is row["eom_ipw_roi"] is None


def test_uniform_is_a_straight_line(report: Report, table: RCTTable) -> None:
    assert table.true_value is not None
    assert table.true_cost is not None
    control = table.true_value[:, 0].double().mean()
    full_value, full_spend = table.true_value[:, 1:].double().mean(), table.true_cost[:, 1:].double().mean()
    slope = float((full_value - control) / full_spend)
    assert slope > 0
    for row in rows_of(report, "uniform"):
        spend = min(row["budget"], float(full_spend))
        assert row["true_spend"] == pytest.approx(spend)
        assert row["true_value"] == pytest.approx(float(control) + slope * spend)
        assert row["true_roi"] == pytest.approx(slope)
    assert uniform_true_curve(table.true_value, table.true_cost).spend[-1] == pytest.approx(float(full_spend))


def test_difference_is_the_paired_one(
    report: Report, table: RCTTable, predictions: dict[str, ResponsePrediction]
) -> None:
    (difference,) = report.differences
    assert (difference.method, difference.baseline) == ("end_to_end", "two_stage")
    b, a = (matched_interval(p.value, p.cost, table.treatment) for p in predictions.values())
    columns = (table.user, table.value, table.cost, table.propensity)
    expected = paired_difference(a, b, *columns, report.budgets, resamples=50)
    for name in ("estimate", "low", "high", "mean", "mean_low", "mean_high"):
        torch.testing.assert_close(getattr(difference.eom_hajek, name), getattr(expected, name))
    assert difference.true_value is not None
    first, last = rows_of(report, "two_stage"), rows_of(report, "end_to_end")
    by_row = [y["true_value"] - x["true_value"] for x, y in zip(first, last, strict=True)]
    assert difference.true_value.estimate.tolist() == pytest.approx(by_row)
    assert float(difference.true_value.mean) == pytest.approx(sum(by_row) / len(by_row))
    assert float(difference.true_value.mean_low) > 0  # a fifth of the noise


def test_two_stage_is_subtracted_in_any_order(table: RCTTable, predictions: dict[str, ResponsePrediction]) -> None:
    turned = dict(reversed(predictions.items()))
    (difference,) = compare(table, CAMPAIGN.schema, turned, [0.3], resamples=5).differences
    assert (difference.method, difference.baseline) == ("end_to_end", "two_stage")


def test_interval_encloses_a_stable_estimate(report: Report) -> None:
    for row in rows_of(report, "end_to_end"):
        assert row["eom_hajek_low"] < row["eom_hajek"] < row["eom_hajek_high"]
        assert "true_low" not in row
    assert "eom_hajek_low" not in rows_of(report, "oracle")[0]


def test_identical_predictions_differ_by_nothing(table: RCTTable, predictions: dict[str, ResponsePrediction]) -> None:
    same = {"a": predictions["two_stage"], "b": predictions["two_stage"], "c": predictions["end_to_end"]}
    r = compare(table, CAMPAIGN.schema, same, FRACTIONS, resamples=20)
    assert [(d.method, d.baseline) for d in r.differences] == [("b", "a"), ("c", "a")]
    for paired in (r.differences[0].eom_hajek, r.differences[0].true_value):
        assert paired is not None
        assert not torch.stack([paired.estimate, paired.low, paired.high]).any()
        assert float(paired.mean) == float(paired.mean_low) == float(paired.mean_high) == 0
    assert "b is not distinguishable from a" in sentences(r)[0]


def test_one_method_has_no_difference(table: RCTTable, predictions: dict[str, ResponsePrediction]) -> None:
    r = compare(table, CAMPAIGN.schema, {"model": predictions["end_to_end"]}, FRACTIONS, resamples=5)
    assert r.differences == []
    assert sentences(r) == []
    assert "minus" not in as_text(r)


def test_sentence_says_which_is_better(report: Report) -> None:
    (line,) = sentences(report)
    assert line.startswith("end-to-end earns +")
    assert "spend per user more than two-stage (95 % interval " in line
    d = report.differences[0]
    assert d.true_value is not None
    p = d.true_value
    turned = replace(p, mean=-p.mean, mean_low=-p.mean_high, mean_high=-p.mean_low)
    (line,) = sentences(replace(report, differences=[replace(d, true_value=turned)]))
    assert line.startswith("end-to-end earns ")
    assert "+" not in line
    assert "less than two-stage (95 % interval -" in line


def test_curves_are_thin_and_keep_their_ends(report: Report, blind: Report) -> None:
    assert {(c.method, c.kind) for c in report.curves} >= {("oracle", "true"), ("two_stage", "eom_hajek")}
    for curve in [*report.curves, *blind.curves]:
        assert 2 <= len(curve.spend) == len(curve.value) <= 400
    (oracle,) = (c for c in report.curves if (c.method, c.kind) == ("oracle", "true"))
    assert oracle.spend[0] == 0
    assert oracle.spend[-1] == pytest.approx(report.free_spend, rel=1e-6)
    gaps = torch.tensor(oracle.spend).diff()
    assert gaps.max() < 3 * report.free_spend / 400


@pytest.mark.parametrize("which", ["report", "blind"])
def test_rendering_shows_every_budget_and_method(which: str, request: pytest.FixtureRequest) -> None:
    r: Report = request.getfixturevalue(which)
    text = as_text(r)
    assert max(map(len, text.splitlines())) <= 100
    methods = ["control", "uniform random", "two-stage", "end-to-end", *(["oracle"] if r.has_oracle else [])]
    comparison = text.split("Mean over budgets")[0]
    for method in methods:
        assert comparison.count(f" {method} ") == len(FRACTIONS), method
    for fraction, budget in zip(r.fractions, r.budgets, strict=True):
        assert f"{100 * fraction:g} %" in comparison
        assert f"{budget:.3f}" in comparison
    assert render(r).row_count == len(r.rows)
    assert sentences(r)[0] in " ".join(text.split())


def test_names_are_not_markup(table: RCTTable, predictions: dict[str, ResponsePrediction]) -> None:
    schema = replace(CAMPAIGN.schema, treatments=("control", "[red]", "$5 $10", "[/b]", "x"), value_unit="[b]")
    r = compare(
        table, schema, {"run[1]/best": predictions["two_stage"], "_b$_$": predictions["end_to_end"]}, [0.3], 2.0, 5
    )
    assert all(name in as_text(r) for name in ("run[1]/best", "[red]", "[/b]", "[b]"))
    terminal = io.StringIO()
    Console(file=terminal, width=100, force_terminal=True).print(render(r))
    assert "run[1]/best" in terminal.getvalue()
    from lightning_budget.report import comparison_figure

    comparison_figure(r).savefig(io.BytesIO(), format="png")


def test_print_survives_a_poor_terminal(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    print_report(report)
    sys.stdout.flush()
    assert b"end-to-end earns" in raw.getvalue()


def test_narrow_terminal_loses_no_number(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", Terminal(raw, encoding="utf-8"))
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")
    print_report(report)
    sys.stdout.flush()
    shown, expected = raw.getvalue().decode(), as_text(report)
    assert [line.rstrip() for line in shown.splitlines()] == expected.splitlines()


def test_files_are_written_whole(report: Report, tmp_path) -> None:
    folder = tmp_path / "deep" / "run"
    pictures = write_report(report, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["curves.png", "curves.svg", "report.json"]
    assert [p.name for p in pictures] == ["curves.png", "curves.svg"]
    assert json.loads((folder / "report.json").read_text(encoding="utf-8")) == report.to_dict()
    png = (folder / "curves.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (1200, 800)
    assert "</svg>" in (folder / "curves.svg").read_text(encoding="utf-8")


def test_failed_drawing_leaves_numbers_and_no_half_picture(
    report: Report, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "curves.png").write_bytes(b"old")

    def savefig(self: Figure, path: Any, **_: Any) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("no ink")

    monkeypatch.setattr(Figure, "savefig", savefig)
    with pytest.raises(RuntimeError, match="no ink"):
        write_report(report, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "report.json"]
    assert (tmp_path / "curves.png").read_bytes() == b"old"
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["row_count"] == 4000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": {}}, "no predictions"),
        ({"predictions": {"oracle": RIGHT}}, "'oracle'"),
        ({"predictions": {"m": ResponsePrediction(RIGHT.value[:1], RIGHT.cost[:1])}}, "'m' has shape"),
        ({"predictions": {"m": ResponsePrediction(RIGHT.value / 0 - RIGHT.value / 0, RIGHT.cost)}}, "not finite"),
        ({"fractions": []}, "budget fractions"),
        ({"fractions": [0.1, 0.0]}, "budget fractions"),
        ({"free_spend": 0.0}, "free spend"),
        ({"resamples": 0}, "resamples=0"),
    ],
)
def test_bad_input_is_told_in_one_line(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"predictions": {"m": RIGHT}, "fractions": [0.5], "resamples": 5, **change}
    with pytest.raises(InputError, match=message) as caught:
        compare(TINY, TINY_SCHEMA, **arguments)
    assert "\n" not in str(caught.value)


def test_arms_that_cost_nothing_are_refused() -> None:
    free = replace(TINY.without_oracle(), cost=torch.zeros(2))
    with pytest.raises(InputError, match="free spend"):
        compare(free, TINY_SCHEMA, {"m": RIGHT}, [0.5], resamples=5)
