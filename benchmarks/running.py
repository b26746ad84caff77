"""One run of distill.py, by one process with one thread, from the root of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_distill(stage: str, *flags: str) -> None:
    """Do what is not there yet of a run, up to this stage. Raises RuntimeError with the command and what it said."""
    command = [sys.executable, "distill.py", stage, *flags, "--processes", "1"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
