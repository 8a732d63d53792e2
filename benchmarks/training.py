"""Speed of a training step, Lightning against raw TorchRec against plain PyTorch: ``python benchmarks/training.py``.

All loops take turns in one process, one thread: a few steps each, round after round, in random order; then again in
another process. A ratio is taken within a round and its median over rounds is what counts, so that a machine with other
work slows both sides alike. The clock is the processor time of the process; on a GPU, elapsed time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

# Before torch is imported; inherited by every process.
os.environ["OMP_NUM_THREADS"] = "1"

from machine import gpu, hardware, result_file, versions
from training_loops import CHECKED, LIGHTNING, PLAIN, Loop, take_turns
from workload import Workload

from lightning_budget.atomic import atomic_path

RESULTS = Path(__file__).resolve().parent / "results"
FEATURES = {f"f{n // 1000}k": n for n in (20_000, 30_000, 40_000, 50_000, 60_000, 80_000, 100_000)}
LARGE = Workload(
    tables={"user": 1_000_000, "history": 10_000, **FEATURES},
    dim=32,
    batch_size=4096,
    dense=13,
    history="history",
    network={"dense_hidden": [64, 32], "trunk_hidden": [128], "head_hidden": 4},
)
TINY = Workload(
    tables={"user": 1000, "item": 100},
    dim=4,
    batch_size=64,
    dense=4,
    network={"dense_hidden": [8], "trunk_hidden": [8], "head_hidden": 4},
)
TITLES = {
    "raw": "raw TorchRec loop",
    "lightning": "Lightning + TorchRecStrategy",
    "logged": "… with logging (CSV)",
    "throughput": "… and the throughput callback",
    "bag_adagrad": "nn.EmbeddingBag(sparse=True) + Adagrad",
    "bag_sparse_adam": "nn.EmbeddingBag(sparse=True) + SparseAdam",
}
LIMITS = {"raw": 1.05, "bag_adagrad": 0.75, "bag_sparse_adam": 0.60}
"""Largest ratio of a Lightning step to theirs."""
STATE_LIMIT = 1 / 32
"""Largest ratio of row-wise Adagrad's state to Adagrad's."""


@dataclass
class Measured:
    """Loops of one workload, the turns of all sets of them one after the other."""

    loops: dict[str, Loop]

    def clock(self, name: str) -> list[float]:
        """Milliseconds per step of every turn, on the clock that counts."""
        return self.wall(name) if gpu() else [1e3 * t for t in self.loops[name].cpu]

    def wall(self, name: str) -> list[float]:
        return [1e3 * t for t in self.loops[name].wall]

    def median(self, name: str) -> float:
        return statistics.median(self.clock(name))


def measure(workload: Workload, plain: Sequence[str], repeats: int, rounds: int, untimed: int, timed: int) -> Measured:
    """Compare Lightning with the ``plain`` loops in ``repeats`` processes, as memory is laid out anew in each.

    A loop has ``rounds`` turns in each, of ``untimed`` and then ``timed`` steps.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["training_loops"])
    whole: dict[str, Loop] = {}
    for _ in range(repeats):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=take_turns, args=(theirs, workload, rounds, untimed, timed, plain))
        process.start()
        theirs.close()
        try:
            loops = ours.recv()
        except EOFError:
            sys.exit("the loops died, see above")
        process.join()
        check_same_work(loops)
        for name, loop in loops.items():
            if name in whole:
                whole[name].cpu += loop.cpu
                whole[name].wall += loop.wall
            else:
                whole[name] = loop
    return Measured(whole)


def check_same_work(loops: dict[str, Loop]) -> str:
    """Refuse to compare loops that did not compute the same, else say how far they agree.

    Raises:
        SystemExit: naming what differs.
    """
    ours = loops["lightning"]
    raw = loops["raw"]
    if len(ours.losses) != CHECKED or ours.plan != raw.plan:
        sys.exit(f"raw TorchRec shards as {raw.plan}, Lightning as {ours.plan}")
    apart: dict[str, list[float]] = {}
    for name in ("raw", *(n for n in loops if n.startswith("bag"))):
        if loops[name].batches != ours.batches:
            sys.exit(f"{name} and Lightning saw different batches")
        apart[name] = [abs(a - b) for a, b in zip(loops[name].losses, ours.losses, strict=True)]
        # The heads start at zero, so tables first move after the second step's forward: until then all must agree.
        if not max(apart[name] if name == "raw" else apart[name][:2]) < 1e-5:
            sys.exit(f"{name} has losses {loops[name].losses}, Lightning {ours.losses}")
    others = [x[-1] for name, x in apart.items() if name != "raw"]
    if others and not min(others) > 1e-5:
        sys.exit(f"loops with other optimizers have Lightning's losses {ours.losses}: the comparison sees nothing")
    return (
        f"All loops saw the same batches and start; losses of the first {CHECKED} steps, raw and Lightning: at most "
        f"{max(apart['raw']):.1e} apart"
        + (f"; with other optimizers at least {min(others):.1e} by then." if others else ".")
    )


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def ratios(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x / y for x, y in zip(a, b, strict=True)]


def differences(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [x - y for x, y in zip(a, b, strict=True)]


def large_table(measured: Measured) -> list[str]:
    clock = "elapsed" if gpu() else "processor"
    lines = [
        f"| loop | {clock} ms per step | elapsed ms | ratio to raw | optimizer state of tables, MiB |",
        "|---|---|---|---|---|",
    ]
    for name in TITLES:
        cells = [
            TITLES[name],
            spread(measured.clock(name), 1),
            spread(measured.wall(name), 1),
            spread(ratios(measured.clock(name), measured.clock("raw")), 3),
            f"{measured.loops[name].state_bytes / 2**20:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def claims(large: Measured) -> tuple[list[str], list[str]]:
    """Lines that state every claim, and those that do not hold."""
    lines, failed = [], []

    def claim(text: str, value: float, shown: str, limit: float, limit_shown: str) -> None:
        line = f"{text}: {shown}, at most {limit_shown}"
        lines.append(f"- {line}: {'holds' if value <= limit else 'falls short'}")
        if value > limit:
            failed.append(line)

    for name, limit in LIMITS.items():
        r = ratios(large.clock("lightning"), large.clock(name))
        claim(f"Lightning step / {TITLES[name]}", statistics.median(r), spread(r, 3), limit, f"{limit:.2f}")
    state = large.loops["lightning"].state_bytes / large.loops["bag_adagrad"].state_bytes
    shown = f"{state:.5f} (1/{1 / state:.2f})"
    claim("state of row-wise Adagrad / Adagrad", state, shown, STATE_LIMIT, "1/32")
    return lines, failed


def fixed_costs(tiny: Measured) -> list[str]:
    def cost(name: str, base: str) -> str:
        return spread(differences(tiny.clock(name), tiny.clock(base)), 3) + " ms"

    steps = ", ".join(f"{TITLES[name]} {tiny.median(name):.2f} ms" for name in ("raw", *LIGHTNING))
    return [
        f"Fixed cost, from a tiny model (batch {TINY.batch_size}): {steps}. Differences within a round:",
        "",
        f"- Lightning's per step: {cost('lightning', 'raw')}",
        f"- logging's per step, on top: {cost('logged', 'lightning')}",
        f"- the throughput callback's per ordinary step, on top: {cost('throughput', 'logged')}",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, under a minute, nothing written")
    arguments = parser.parse_args()
    repeats, rounds = (1, 12) if arguments.quick else (4, 50)
    large = measure(LARGE, PLAIN, repeats, rounds, untimed=1, timed=3)
    tiny = measure(TINY, ["raw"], repeats, rounds, untimed=3, timed=20)
    stated, failed = claims(large)
    plans = ", ".join(sorted({" ".join(p) for p in large.loops["lightning"].plan.values()}))
    tables = ", ".join(f"{rows:,}" for rows in LARGE.tables.values())
    lines = [
        "# Speed of a training step",
        "",
        f"Tables of {tables} rows × {LARGE.dim} (the second looked up {LARGE.history_length} times a row), batch "
        f"{LARGE.batch_size:,}, {LARGE.dense} numbers, {LARGE.treatments} treatments, dense net {LARGE.network}, "
        f"float32; TorchRec's plan: {plans}. {repeats} × {rounds} rounds; medians over rounds and (quartiles).",
        "",
        *large_table(large),
        "",
        check_same_work(large.loops),
        "",
        *stated,
        "",
        *fixed_costs(tiny),
        "",
        f"{hardware()}; one thread; {versions()}",
        "",
        f"falls short: {'; '.join(failed)}" if failed else "holds",
    ]
    print("\n".join(lines))
    if not arguments.quick:
        with atomic_path(result_file(RESULTS, "training")) as path:
            path.write_text("\n".join(lines) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
