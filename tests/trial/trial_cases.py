"""Random trials for the checks, and what they should find, by loops."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_budget.trial import IdFeature, Logged, logged_trial

ARMS = ("control", "low", "high", "top")


def random_trial(
    rows: int,
    seed: int,
    arms: int = 3,
    rule: str = "constant",
    users: int | None = None,
    by_user: bool = False,
    levels: int = 4,
    lists: bool = False,
) -> Logged:
    """A sound trial: two dense features, the id feature ``city`` and perhaps lists ``viewed``.

    Args:
        rule: ``constant`` propensities, unequal; by the ``city``; or ``smooth`` in the first dense feature.
        users: rows have one of so many users; ``None``: their own.
        by_user: all rows of a user get the same arm.
    """
    g = np.random.default_rng(seed)
    user = np.arange(rows) if users is None else g.integers(0, users, rows)
    dense = g.standard_normal((rows, 2)).astype(np.float32)
    city = g.integers(1, levels, rows)
    if users is not None:
        # Persistent features: rows of a user are alike.
        dense[:, 0] = g.standard_normal(users)[user]
        city = g.integers(1, levels, users)[user]
    if rule == "constant":
        score = np.tile(np.arange(1.0, arms + 1), (rows, 1))
    elif rule == "city":
        score = 1.0 + (city[:, None] + np.arange(arms)) % 3
    else:
        score = np.exp(0.5 * np.arange(arms) * np.tanh(dense[:, :1]))
    p = score / score.sum(1, keepdims=True)
    draw = g.random(user.max() + 1)[user] if by_user else g.random(rows)
    t = np.minimum((draw[:, None] > p.cumsum(1)).sum(1), arms - 1)
    ids = [IdFeature("city", torch.from_numpy(city), levels, names=tuple("ABCDEFGHIJ"[: levels - 1]) or None)]
    if levels > 11:
        ids = [IdFeature("city", torch.from_numpy(city), levels)]
    if lists:
        lengths = g.integers(0, 4, rows)
        offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))
        ids.append(IdFeature("viewed", torch.from_numpy(g.integers(1, 6, lengths.sum())), 6, offsets))
    return logged_trial(
        ARMS[:arms],
        torch.from_numpy(t),
        torch.from_numpy(p[np.arange(rows), t]),
        torch.from_numpy(g.random(rows)),
        torch.from_numpy(g.random(rows)),
        torch.from_numpy(dense),
        ("age", "basket"),
        tuple(ids),
        torch.from_numpy(user),
    )


def remade(trial: Logged, **changes: object) -> Logged:
    """The trial with other columns."""
    columns = {
        name: getattr(trial, name)
        for name in ("arms", "treatment", "propensity", "value", "cost", "dense", "dense_names", "ids")
    }
    return logged_trial(**{**columns, "user": trial.cluster, **changes})  # type: ignore[arg-type]


def kept_rows(trial: Logged, keep: NDArray[np.bool_]) -> Logged:
    """Some rows of a trial without lists."""
    index = torch.from_numpy(np.flatnonzero(keep))
    ids = tuple(IdFeature(f.name, f.values[index], f.levels, names=f.names) for f in trial.ids)
    columns = {n: getattr(trial, n)[index] for n in ("treatment", "propensity", "value", "cost", "dense")}
    return remade(trial, **columns, ids=ids, user=None if trial.cluster is None else trial.cluster[index])


def residuals(trial: Logged) -> NDArray[np.float64]:
    """``[N, K]`` 1[t = j] / p − 1."""
    t, p = trial.treatment.numpy(), trial.propensity.double().numpy()
    return (t[:, None] == np.arange(len(trial.arms))) / p[:, None] - 1


def user_of(trial: Logged) -> NDArray[np.int64]:
    return np.arange(len(trial)) if trial.cluster is None else trial.cluster.numpy()
