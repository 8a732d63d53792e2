"""Which epochs compete to be the one that is kept."""

from __future__ import annotations

import lightning as L


def first_candidate(trainer: L.Trainer) -> int:
    """Epoch, counted from 0, from which checkpoints compete: the second half of ``max_epochs``; 0 where it is open.

    Early epochs are left out because the learning rate is high: what a method earns then jumps from epoch to epoch as
    much as the validation metric errs, so a maximum over all epochs is half chance. Two methods whose maxima lie in
    different epochs then differ by that chance, not by what they are.
    """
    return max(trainer.max_epochs or 0, 0) // 2
