"""Start the ranks of a job list on this machine and read what they left."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from training_runs import environment, weights

from tests.forked import Forked

HERE = Path(__file__).resolve().parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_ranks(world_size: int, script: str, *arguments: str) -> list[Forked]:
    """Start a script once per rank, as torchrun would, each in a session of its own."""
    port = free_port()
    processes = []
    for rank in range(world_size):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "GROUP_RANK": 0,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            # By this Lightning recognises torchrun's environment.
            "TORCHELASTIC_RUN_ID": "test",
        }
        env = {**environment(), **{k: str(v) for k, v in place.items()}}
        env["PYTHONPATH"] = f"{HERE}{os.pathsep}{env['PYTHONPATH']}"
        processes.append(Forked([HERE / script, *arguments], env))
    return processes


def finish(processes: Sequence[Forked], timeout: float = 240) -> list[str]:
    """What each rank printed; none outlives this call."""
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0])
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    return outputs


def run_jobs(world_size: int, jobs: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Run jobs one after another on ``world_size`` ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    described = [{"folder": str(folder), "result": str(folder / f"{job['name']}.ckpt"), **job} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(described))
    processes = start_ranks(world_size, "rank_worker.py", str(folder / "jobs.json"))
    outputs = finish(processes)
    assert [p.returncode for p in processes] == [0] * world_size, "\n".join(o[-3000:] for o in outputs)


def losses(folder: Path, name: str) -> dict[int, float]:
    """Loss by step of a job."""
    return {int(k): v for k, v in json.loads((folder / f"{name}.losses.json").read_text()).items()}


def assert_same_weights(a: Path, b: Path, atol: float = 1e-5) -> None:
    """Equal model and optimizer states of two checkpoints of one file."""
    mine, theirs = weights(a), weights(b)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(
            mine[name], tensor, rtol=1e-5, atol=atol, equal_nan=True, msg=lambda m, n=name: f"{n}: {m}"
        )
