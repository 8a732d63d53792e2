"""Sums by level against loops over users."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trial_cases import random_trial, residuals, user_of

from lightning_budget.trial import Logged, levels
from lightning_budget.trial.levels import LevelSums, level_sums


def by_loops(trial: Logged, values: torch.Tensor, count: int, row: torch.Tensor) -> LevelSums:
    g, q, user = residuals(trial), trial.mean_share().numpy(), user_of(trial)
    out = {name: np.zeros(count) for name in ("rows", "clusters", "own", "row_own", "square")}
    arms, excess = np.zeros((count, len(q))), np.zeros((count, len(q)))
    for level in range(count):
        entries = row[values == level].numpy()
        parts = [g[entries[user[entries] == u]].sum(0) for u in np.unique(user[entries])]
        kappa = np.array([[(q * a * b).sum() for b in parts] for a in parts]).reshape(len(parts), len(parts))
        out["rows"][level], out["clusters"][level] = len(entries), len(parts)
        out["own"][level] = np.trace(kappa)
        out["row_own"][level] = (q * g[entries] ** 2).sum()
        out["square"][level] = (kappa**2).sum() - (np.diag(kappa) ** 2).sum()
        arms[level] = np.bincount(trial.treatment.numpy()[entries], minlength=len(q))
        excess[level] = g[entries].sum(0)
    columns = {name: torch.from_numpy(x) for name, x in out.items()}
    return LevelSums(count=torch.from_numpy(arms), excess=torch.from_numpy(excess), **columns)


@pytest.mark.parametrize("chunk_bytes", [1 << 25, 0])
@pytest.mark.parametrize("users", [None, 60, 5])
@pytest.mark.parametrize("lists", [False, True])
def test_sums_are_those_of_loops(
    users: int | None, lists: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(levels, "MIN_CHUNK", 7)
    trial = random_trial(300, 0, rule="smooth", users=users, levels=9, lists=True)
    feature = trial.ids[lists]
    values, row = feature.entries()
    found = level_sums(trial, values, feature.levels, row if lists else None)
    wanted = by_loops(trial, values, feature.levels, row)
    for name in ("rows", "clusters", "count", "excess", "own", "row_own", "square"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(wanted, name), rtol=1e-9, atol=1e-9, msg=f"{name}"
        )


def test_no_rows_of_a_level_and_one_row() -> None:
    trial = random_trial(1, 0, levels=4)
    sums = level_sums(trial, trial.ids[0].values, 4)
    assert int(sums.rows.sum()) == 1
    assert sums.square.tolist() == [0.0] * 4
