"""Groups on the host live as long as the default group, once for each purpose and timeout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from lightning_budget.training.host_groups import host_group


def gloo_threads():
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())


for cycle in range(2):
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/{cycle}", rank=0, world_size=1)
    group = host_group("a")
    assert host_group("a") is group
    assert host_group("b") is not group
    assert host_group("a", timedelta(seconds=9)) is not group
    dist.barrier(group)
    assert gloo_threads() > 0
    del group
    dist.destroy_process_group()
    assert gloo_threads() == 0, f"{gloo_threads()} threads are left after cycle {cycle}"
print("fine")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_one_a_purpose_until_the_default_group_ends(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr
