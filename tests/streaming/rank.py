"""One rank of jobs described as JSON, some of which kill it without warning: ``python rank.py jobs.json``."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from streams import run, small

from lightning_budget.errors import InputError
from lightning_budget.streaming import job as job_module
from lightning_budget.streaming import output
from lightning_budget.streaming.ranks import joined
from lightning_budget.streaming.spool import SpoolWriter


def die_at(module: Any, name: str, call: int) -> None:
    """Kill this process when a function is called for that time."""
    original, count = getattr(module, name), 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(module, name, counted)


PLACES = {
    "scan": (SpoolWriter, "add", 13),
    "writing": (output, "_decided", 5),
    "publishing": (job_module, "publish", 1),
}


def main() -> None:
    torch.set_num_threads(1)
    small(setattr)
    with joined() as ranks:
        for job in json.loads(Path(sys.argv[1]).read_text()):
            if "die" in job:
                die_at(*PLACES[job["die"]])
            try:
                run(Path(job["input"]), Path(job["output"]), job["budget"], ranks, **job.get("changes", {}))
            except InputError as error:
                print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
