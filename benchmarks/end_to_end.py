"""End-to-end minus two-stage in true value, over seeds of the embedded campaign: ``python benchmarks/end_to_end.py``.

Every seed is another population, another trial and another start. Both methods of a seed share them, the number of
epochs and the selection of the checkpoint on validation EOM; the oracle of the test split is only read here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
# 97.5 % quantiles of Student's t by degrees of freedom.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=12, help="number of seeds, 2 to 12")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two seeds of a tenth of the campaign, under a minute")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "benchmark_end_to_end", help="finished seeds are kept"
    )
    parser.add_argument("--output", type=Path, help="Markdown table; default benchmarks/results, with --quick none")
    parser.add_argument(
        "overrides", nargs="*", help="config overrides for every run, such as model.trunk_hidden=[64,32]"
    )
    arguments = parser.parse_args()
    if not 2 <= arguments.seeds <= 12:
        parser.error("--seeds: 2 to 12")
    return arguments


def run_seed(seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Report of one seed; a seed that has finished before is not run again, one that was cut off goes on."""
    if not (folder / "report.json").is_file():
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), f"seed={seed}", f"run_dir={folder}"]
        command += ["logger=csv", "resamples=50", "~callbacks.progress", *overrides]
        if (folder / "config.yaml").is_file():
            command.append(f"ckpt_path={folder}")
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
        if done.returncode:
            sys.exit(f"seed {seed} failed:\n{done.stdout[-3000:]}")
    return json.loads((folder / "report.json").read_text())


def true_values(report: dict[str, Any], method: str) -> list[float]:
    return [row["true_value"] for row in report["rows"] if row["method"] == method]


def mean(x: list[float]) -> float:
    return sum(x) / len(x)


def interval(differences: list[float]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % t interval."""
    n, centre = len(differences), mean(differences)
    sd = math.sqrt(sum((d - centre) ** 2 for d in differences) / (n - 1))
    half = T[n - 1] * sd / math.sqrt(n)
    return centre, centre - half, centre + half


def main() -> int:
    arguments = parse()
    seeds = range(arguments.first_seed, arguments.first_seed + (2 if arguments.quick else arguments.seeds))
    overrides = list(arguments.overrides)
    if arguments.quick:
        overrides = ["experiment=small_campaign", *overrides]
    runs = arguments.runs / ("quick" if arguments.quick else "_".join(overrides).replace("/", "-") or "default")
    lines = ["| seed | control | uniform | two-stage | end-to-end | oracle | difference | seconds |", "|---" * 8 + "|"]
    differences, by_budget = [], []
    for seed in seeds:
        start = time.monotonic()
        report = run_seed(seed, (runs / f"seed{seed}").absolute(), overrides)
        value = {m: true_values(report, m) for m in ("control", "uniform", "two_stage", "end_to_end", "oracle")}
        by_budget.append([e - t for e, t in zip(value["end_to_end"], value["two_stage"], strict=True)])
        differences.append(mean(by_budget[-1]))
        cells = [f"{mean(v):.4f}" for v in value.values()]
        lines.append(
            f"| {seed} | " + " | ".join(cells) + f" | {differences[-1]:+.4f} | {time.monotonic() - start:.0f} |"
        )
        print(lines[-1] if seed != seeds[0] else "\n".join(lines), flush=True)
    centre, low, high = interval(differences)
    budgets = ", ".join(f"{f:.0%}: {mean([d[i] for d in by_budget]):+.4f}" for i, f in enumerate(report["fractions"]))
    summary = (
        f"True value per user, mean over budgets, end-to-end minus two-stage: {centre:+.4f} "
        f"(95 % t interval {low:+.4f} … {high:+.4f}, {len(differences)} seeds). By budget: {budgets}."
    )
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"\n{summary}\n{machine}")
    holds = low > 0
    verdict = "holds" if holds else "falls short: the interval of the difference does not lie above zero"
    output = arguments.output or (None if arguments.quick else ROOT / "benchmarks" / "results" / "end_to_end.md")
    if output is not None:
        title = f"# End-to-end against two-stage, embedded campaign {' '.join(overrides)}".rstrip()
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("\n".join([title, "", *lines, "", summary, "", machine, "", verdict, ""]))
    print(verdict)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
