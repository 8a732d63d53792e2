"""Public figures of the Hillstrom e-mail trial, and scikit-uplift on its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch

from lightning_budget.metrics.functional import auuc, increments, qini, uniform_curve

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "hillstrom" / "hillstrom.parquet"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"needs {FILE}")

ARMS = ["No E-Mail", "Mens E-Mail", "Womens E-Mail"]
PUBLISHED = {
    "visit": [0.1062, 0.1828, 0.1514],
    "conversion": [0.00573, 0.01253, 0.00884],
    "spend": [0.6528, 1.4226, 1.0772],
}


@pytest.fixture(scope="module")
def trial() -> dict[str, np.ndarray]:
    table = pyarrow.parquet.read_table(FILE).to_pydict()
    columns = {name: np.asarray(table[name], dtype=np.float64) for name in ("visit", "conversion", "spend", "history")}
    return {**columns, "arm": np.array([ARMS.index(a) for a in table["segment"]])}


@pytest.mark.parametrize("outcome", PUBLISHED)
def test_increments_are_the_published_differences(trial: dict[str, np.ndarray], outcome: str) -> None:
    y, arm = (torch.from_numpy(trial[name]) for name in (outcome, "arm"))
    third = torch.full_like(y, 1 / 3)
    found = increments(arm, y, y, third, 3)
    control, *rates = PUBLISHED[outcome]
    digits = 1e-4 if outcome != "conversion" else 1e-5
    assert found.value.tolist() == pytest.approx([rate - control for rate in rates], abs=1.01 * digits)
    # The unpaired comparison of two means.
    for j in (1, 2):
        parts = [trial[outcome][trial["arm"] == k] for k in (0, j)]
        error = sum(p.var(ddof=1) / len(p) for p in parts) ** 0.5
        assert float(found.value_error[j - 1]) == pytest.approx(error, rel=1e-9)
    ends = uniform_curve(arm, y, y, third, 3).value
    assert ends.tolist() == pytest.approx([control, sum(rates) / 2], abs=digits)


@pytest.mark.parametrize("arm", [1, 2])
@pytest.mark.filterwarnings("ignore:.*stable_cumsum:FutureWarning")
def test_scikit_uplift_agrees_where_scores_do_not_tie(trial: dict[str, np.ndarray], arm: int) -> None:
    metrics = pytest.importorskip("sklift.metrics")
    rows = np.isin(trial["arm"], (0, arm))
    treated = (trial["arm"][rows] == arm).astype(int)
    visit = trial["visit"][rows]
    score = trial["history"][rows] + np.random.default_rng(0).random(rows.sum()) * 1e-3
    assert len(np.unique(score)) == len(score)
    tensors = [torch.from_numpy(x) for x in (score, treated, visit)]
    assert float(auuc(*tensors).normalized) == pytest.approx(metrics.uplift_auc_score(visit, score, treated), rel=1e-9)
    assert float(qini(*tensors).normalized) == pytest.approx(metrics.qini_auc_score(visit, score, treated), rel=1e-9)
