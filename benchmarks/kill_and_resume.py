"""Ranks killed at random moments of training and of saving, and what is left: ``python benchmarks/kill_and_resume.py``.

One run on two gloo ranks is killed (SIGKILL of one rank) twenty times, in the middle of a step and in the middle of a
save, and resumed each time, in changing checkpoint formats. Each time the other rank has to end by itself within the
limit and name the lost one; in the end losses, tables and optimizer states must be those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from queue import Empty, Queue

import machine
import torch

from lightning_budget.atomic import atomic_path

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ("full", "sharded", "sharded_async")
LIMIT = 15.0
"""Seconds that the surviving rank has."""


class Run:
    """A worker process with its ranks, and the lines they print as they come."""

    def __init__(self, folder: Path, checkpoint: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = {k: v for k, v in os.environ.items() if k not in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "RANK")}
        env = {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "kill_worker.py"), str(folder), checkpoint],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self._queue: Queue[str | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._queue.put(line.rstrip())
        self._queue.put(None)

    def next_line(self, timeout: float) -> str | None:
        """The next line; ``None`` once all ranks have closed their output."""
        line = self._queue.get(timeout=timeout)
        if line is not None:
            self.lines.append(line)
        return line

    def wait_for(self, pattern: str, count: int, timeout: float = 240) -> bool:
        """Whether ``count`` lines that match came, before the end of the run."""
        end = time.monotonic() + timeout
        while count:
            line = self.next_line(max(0.0, end - time.monotonic()))
            if line is None:
                return False
            count -= pattern in line
        return True

    def wait_for_end(self, timeout: float) -> float:
        """Seconds until every rank has closed its output and the launcher is gone.

        Raises:
            queue.Empty: if a rank hangs; all are killed first.
        """
        start = time.monotonic()
        try:
            while self.next_line(max(0.0, start + timeout - time.monotonic())) is not None:
                pass
            self.process.wait(max(0.1, start + timeout - time.monotonic()))
        except (Empty, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)
            raise Empty from None
        return time.monotonic() - start


def losses(folder: Path) -> dict[int, set[float]]:
    """All losses that were computed at a step: more than one where it was computed again."""
    found: dict[int, set[float]] = {}
    for line in (folder / "losses.jsonl").read_text().splitlines():
        step, loss = json.loads(line)
        found.setdefault(step, set()).add(loss)
    return found


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Model and optimizer states of a checkpoint."""
    saved = torch.load(path, weights_only=True)
    dense = {f"adam.{i}.{k}": v for i, s in saved["optimizer_states"][0]["state"].items() for k, v in s.items()}
    return saved["state_dict"] | saved["torchrec_fused_optimizer"] | dense


def finish(run: Run) -> None:
    if not run.wait_for("finished", 1, 600):
        sys.exit("the run did not finish:\n" + "\n".join(run.lines[-30:]))
    run.wait_for_end(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="three kills")
    arguments = parser.parse_args()
    kills = 3 if arguments.quick else arguments.kills
    rng, faults, told = random.Random(arguments.seed), [], []

    def tell(line: str) -> None:
        told.append(line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary) / "whole", Path(temporary) / "killed"
        reference = Run(whole, "full")
        tell(
            "| kill | steps | of rank | during | format | others ended after | they said |\n" + "|---" * 7 + "|",
        )
        for i in range(kills):
            checkpoint, rank = FORMATS[i % 3], rng.randrange(2)
            during = ("step", "saving")[(i + rng.randrange(2)) % 2]
            run = Run(killed, checkpoint)
            if not run.wait_for(during + " ", rng.randint(2, 8)):
                faults.append(f"run {i} ended before it was killed")
                print("\n".join(run.lines[-30:]))
                break
            time.sleep(rng.uniform(0.0, 0.05 if during == "saving" else 0.2))
            os.kill(int((killed / f"rank{rank}.pid").read_text()), signal.SIGKILL)
            try:
                seconds = f"{run.wait_for_end(LIMIT):.1f} s"
            except Empty:
                seconds = f"more than {LIMIT:g} s"
                faults.append(f"kill {i}: a rank hung")
            said = next((line for line in run.lines if re.search(rf"error: rank {rank} was (lost|killed)", line)), "")
            if not said:
                faults.append(f"kill {i}: nobody named rank {rank}")
                print("\n".join(run.lines[-15:]))
            steps = [int(line.split()[1]) for line in run.lines if re.fullmatch(r"step \d+", line)]
            did = f"{steps[0]} … {steps[-1]}" if steps else ""
            tell(f"| {i + 1} | {did} | {rank} | {during} | {checkpoint} | {seconds} | {said} |")
        finish(reference)
        finish(Run(killed, "full"))
        expected, got = losses(whole), losses(killed)
        if odd := sorted(expected.keys() ^ got.keys()):
            faults.append(f"{len(odd)} steps in one run alone, from {odd[0]} to {odd[-1]}")
        worst = max(abs(x - next(iter(expected[s]))) for s in expected.keys() & got.keys() for x in got[s])
        a, b = tensors(whole / "end.ckpt"), tensors(killed / "end.ckpt")
        apart = max(float((a[k].nan_to_num() - b[k].nan_to_num()).abs().max()) for k in a)
        again = (killed / "losses.jsonl").read_text().count("\n") - len(expected)
        tell(
            f"\n{len(expected)} steps, {again} of them computed again. Largest difference to the uninterrupted run: "
            f"{worst:.1e} in the losses, {apart:.1e} in tables, dense weights and optimizer states."
        )
        if max(worst, apart) > 1e-6:
            faults.append("the resumed run differs from the uninterrupted one")
        left = [p.name for p in killed.iterdir() if ".tmp-" in p.name or p.suffix == ".old"]
        if left:
            faults.append(f"left behind: {left}")
    tell(f"\n{machine.hardware()}; {machine.versions()}\n")
    tell(f"falls short: {'; '.join(faults)}" if faults else "holds")
    if not arguments.quick:
        with atomic_path(machine.result_file(ROOT / "benchmarks" / "results", "kill_and_resume")) as path:
            path.write_text("\n".join(["# Ranks killed at random moments", "", *told, ""]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
