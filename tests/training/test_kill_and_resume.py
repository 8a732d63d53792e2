"""Ranks killed at random moments: the benchmark's short form, three kills."""

from __future__ import annotations

import subprocess
import sys

import pytest
from training_runs import ROOT, environment


@pytest.mark.slow
def test_what_is_left_goes_on_to_the_same_end() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "kill_and_resume.py"), "--quick"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "holds"
