"""Random numbers of the objective that a resumed run draws again, and that training does not notice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch

from lightning_budget.estimators import GradientEstimator

PURPOSES = ("term", "refresh", "batch")
Purpose = Literal["term", "refresh", "batch"]


def generator_for(
    estimator: GradientEstimator, seed: int, step: int, rank: int, purpose: Purpose, device: torch.device
) -> torch.Generator | None:
    """Of this step, rank and purpose alone, so that neither a resumed run nor what is logged changes a draw.

    Args:
        estimator: ``None`` is returned for one that draws nothing.
        rank: 0 for what every rank must find alike.
    """
    if not estimator.is_random:
        return None
    entropy = np.random.SeedSequence([seed, step, rank, PURPOSES.index(purpose)])
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1)[0]))


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """What is drawn inside leaves no trace: a refresh does not change what training draws."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
