"""One of two ranks, of which the second dawdles before its lookup: ``python throughput_rank.py result.json``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from training_runs import small_data, small_module, small_trainer

from lightning_budget.training.callbacks import Throughput

DAWDLE = 0.06


class Dawdle(L.Callback):
    """Rank 1 comes late to the exchange of ids, and rank 0 waits for it there."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_rank == 1:
            pl_module.net.sparse_arch.register_forward_pre_hook(lambda *_: time.sleep(DAWDLE))


def main(result: Path) -> None:
    data = small_data()
    throughput = Throughput(every_n_steps=4)
    trainer = small_trainer(
        result.parent, [Dawdle(), throughput], devices=2, max_steps=8, log_every_n_steps=8, limit_val_batches=0
    )
    trainer.fit(small_module(data), data)
    if trainer.is_global_zero:
        result.write_text(json.dumps(throughput.latest))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
