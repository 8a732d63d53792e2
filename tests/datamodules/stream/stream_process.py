"""One process of an epoch over streamed rows: ``python stream_process.py FOLDER OUT RANK RANKS KILL_AFTER``.

After every batch it writes its rows and the loader's state; begun again it goes on from there. After ``KILL_AFTER``
batches it is killed without warning, while the next window is being read; 0: never. Several processes stratify.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from streamed import module

from lightning_budget.atomic import atomic_path


def main(folder: Path, out: Path, rank: int, ranks: int, kill_after: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if ranks > 1:
        store = f"file://{out.with_suffix('.store')}"
        dist.init_process_group("gloo", store, timedelta(seconds=60), world_size=ranks, rank=rank)
    data = module(folder, cache=str(out.with_name("cache")), sample_rows=60, stratify=ranks > 1)
    data.setup()
    loader = data.train_dataloader()
    diary = out.with_name(f"{out.name}.{rank}.json")
    seen: dict = json.loads(diary.read_text()) if diary.exists() else {"rows": []}
    seen |= {"statistics": data.statistics.to_dict(), "sample": data.train.user.tolist(), "length": len(loader)}
    if "state" in seen:
        loader.load_state_dict(seen["state"])
    loader.sampler.set_epoch(1)
    for i, batch in enumerate(loader, 1):
        seen["rows"].append(batch.row.tolist())
        seen["state"] = loader.state_dict()
        with atomic_path(diary) as path:
            path.write_text(json.dumps(seen))
        if i == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
